// Turning the head: the same blend as mesh.neck_weight.
uniform mat4 view_projection;
uniform mat4 light_projection;
uniform mat3 head_rotation;
uniform vec3 pivot;
uniform vec2 neck_range;
float neck_weight(vec3 rest) {
    float t = clamp((rest.y + 0.55 * clamp(rest.z - 0.2, 0.0, 1.0) - neck_range.x) / (neck_range.y - neck_range.x), 0.0, 1.0);
    return t * t * (3.0 - 2.0 * t);
}
vec3 turned(vec3 p, float w) { return p + w * (head_rotation * (p - pivot) + pivot - p); }
vec3 turned_direction(vec3 d, float w) { return d + w * (head_rotation * d - d); }
