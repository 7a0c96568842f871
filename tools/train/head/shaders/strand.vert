in vec3 pos; in vec3 tangent; in vec4 trait;   // trait: side -1/1 times half width, share of length, random, depth
#ifndef SHADOW
out vec3 world_position, strand_tangent, bulk_normal; out vec3 traits; out vec4 light_position; out vec3 head_position;
#endif
uniform vec3 hair_centre;
uniform vec3 eye_point;
void main() {
    float w = neck_weight(pos);
    vec3 p = turned(pos, w), t = normalize(turned_direction(tangent, w));
    vec3 side = normalize(cross(t, normalize(eye_point - p)) + 1e-5);
    vec3 q = p + side * trait.x;
#ifdef SHADOW
    gl_Position = light_projection * vec4(q, 1.0);
#else
    vec3 away = pos - hair_centre; away.y = max(away.y, -0.35);
    world_position = q; strand_tangent = t; bulk_normal = turned_direction(normalize(away), w) + 0.35 * side * sign(trait.x);
    traits = trait.yzw; head_position = pos;
    light_position = light_projection * vec4(q, 1.0);
    gl_Position = view_projection * vec4(q, 1.0);
#endif
}
