uniform sampler2D picture; uniform int ratio; uniform int height; uniform int offset;
out vec4 result;
void main() {
    // Row 0 of the result is the top of the picture, and frame k lies `offset` rows down.
    ivec2 at = ivec2(int(gl_FragCoord.x), height - 1 - (int(gl_FragCoord.y) - offset)) * ratio;
    vec3 sum = vec3(0.0);
    for (int i = 0; i < ratio; i++) for (int j = 0; j < ratio; j++) sum += texelFetch(picture, at + ivec2(i, j), 0).rgb;
    result = vec4(sum / float(ratio * ratio), 1.0);
}
