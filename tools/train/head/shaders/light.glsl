// One soft key with a shadow map, a fill, a rim from behind and a sky/floor ambient.
uniform sampler2DShadow shadow_map;
uniform vec3 camera;
uniform vec3 key_direction, key_colour, fill_direction, fill_colour, rim_direction, rim_colour, sky_colour, floor_colour;
uniform float shadow_softness;
struct Surface { vec3 albedo; vec3 normal; float rough; float spec; float scatter; float ao; };
const vec2 DISC[12] = vec2[12](vec2(-0.33, -0.41), vec2(0.44, -0.20), vec2(0.05, 0.47), vec2(-0.55, 0.30), vec2(0.62, 0.42),
    vec2(0.13, -0.78), vec2(-0.86, -0.15), vec2(-0.25, 0.88), vec2(0.90, -0.12), vec2(-0.62, -0.70), vec2(0.62, -0.68), vec2(0.42, 0.84));
float lit_share(vec4 light_position, float bias) {
    vec3 p = light_position.xyz * 0.5 + 0.5;
    if (any(lessThan(p.xy, vec2(0.0))) || any(greaterThan(p.xy, vec2(1.0)))) return 1.0;
    float turn = 6.2832 * hash3(vec3(floor(gl_FragCoord.xy), 5.0));
    mat2 spin = mat2(cos(turn), sin(turn), -sin(turn), cos(turn));
    float sum = 0.0;
    for (int i = 0; i < 12; i++) sum += texture(shadow_map, vec3(p.xy + spin * DISC[i] * shadow_softness, p.z - bias));
    return sum / 12.0;
}
float ggx(float nh, float rough) {
    float a2 = rough * rough * rough * rough, d = nh * nh * (a2 - 1.0) + 1.0;
    return a2 / (3.1416 * d * d);
}
float gloss(vec3 n, vec3 v, vec3 l, float rough, float spec) {
    vec3 h = normalize(l + v);
    float nv = max(dot(n, v), 0.12), f = spec + (1.0 - spec) * pow(clamp(1.0 - dot(v, h), 0.0, 1.0), 5.0);
    return ggx(max(dot(n, h), 0.0), rough) * f * max(dot(n, l), 0.0) / (4.0 * mix(nv, 1.0, 0.35));
}
vec3 shade(Surface s, vec3 v, float lit) {
    float key = dot(s.normal, key_direction);
    vec3 wrap = s.scatter * vec3(0.42, 0.20, 0.13);
    vec3 diffuse = clamp((vec3(key) + wrap) / (1.0 + wrap), 0.0, 1.0);
    // Light that wanders under the skin reddens the edge of shadows.
    vec3 soft = mix(vec3(lit), vec3(pow(lit, 0.60), pow(lit, 0.95), lit), s.scatter);
    vec3 light = key_colour * diffuse * mix(soft, vec3(1.0), 0.05);
    light += fill_colour * clamp(dot(s.normal, fill_direction) * 0.65 + 0.35, 0.0, 1.0) * mix(1.0, s.ao, 0.7);
    float bright_ao = mix(s.ao, 1.0, 0.10);
    // Multiple bounces colour the occlusion of bright surfaces.
    vec3 ao = mix(vec3(bright_ao), pow(vec3(bright_ao), 1.0 - vec3(0.38, 0.22, 0.16) * ramp(0.0, 0.5, s.albedo.r)), s.scatter);
    light += mix(floor_colour, sky_colour, s.normal.y * 0.5 + 0.5) * ao;
    vec3 colour = s.albedo * light * mix(vec3(1.0), ao, 0.60);
    float open = s.ao * s.ao;
    colour += key_colour * lit * open * gloss(s.normal, v, key_direction, s.rough, s.spec);
    colour += fill_colour * open * 1.2 * gloss(s.normal, v, fill_direction, s.rough, s.spec);
    float back = clamp(dot(s.normal, rim_direction) * 1.1 + 0.1, 0.0, 1.0), graze = pow(clamp(1.0 - dot(s.normal, v), 0.0, 1.0), 2.5);
    colour += rim_colour * back * (0.30 * s.albedo + graze * (0.25 * ramp(0.0, 0.01, s.spec) + 0.45 * s.albedo)) * s.ao;
    colour += sky_colour * graze * 0.07 * s.ao * ramp(0.0, 0.05, s.spec);
    return colour;
}
