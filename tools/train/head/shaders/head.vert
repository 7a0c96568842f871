in vec3 pos; in vec3 nrm; in vec3 rest; in vec2 uv; in float part; in float occlusion;
out vec3 world_position, world_normal, rest_position, posed_position;
out vec2 mask_uv; flat out int part_id; out vec4 light_position; out float baked_ao;
void main() {
    float w = neck_weight(rest);
    vec3 p = turned(pos, w);
    world_position = p; world_normal = turned_direction(nrm, w); rest_position = rest; posed_position = pos;
    mask_uv = uv; part_id = int(part + 0.5); baked_ao = occlusion;
    light_position = light_projection * vec4(p, 1.0);
    gl_Position = view_projection * vec4(p, 1.0);
}
