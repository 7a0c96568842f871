in vec3 pos; in vec3 nrm;
out vec3 world_position, world_normal; out vec4 light_position;
void main() {
    vec3 p = turned(pos, 1.0);
    world_position = p; world_normal = head_rotation * nrm; light_position = light_projection * vec4(p, 1.0);
    gl_Position = view_projection * vec4(p, 1.0);
}
