in vec3 pos; in vec3 rest; in float part;
flat out int part_id;
void main() { part_id = int(part + 0.5); gl_Position = light_projection * vec4(turned(pos, neck_weight(rest)), 1.0); }
