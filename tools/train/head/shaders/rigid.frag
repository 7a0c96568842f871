in vec3 world_position, world_normal; in vec4 light_position;
uniform vec3 frame_colour;
out vec4 result;
void main() {
    vec3 v = normalize(camera - world_position), n = normalize(world_normal);
    if (dot(n, v) < 0.0) n = -n;
    result = vec4(develop(shade(Surface(frame_colour, n, 0.32, 0.05, 0.0, 0.9), v, lit_share(light_position, 0.006))), 1.0);
}
