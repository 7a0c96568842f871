in vec2 corner; out vec2 place;
void main() { place = corner; gl_Position = vec4(corner, 0.9999, 1.0); }
