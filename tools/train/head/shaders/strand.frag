in vec3 world_position, strand_tangent, bulk_normal; in vec3 traits; in vec4 light_position; in vec3 head_position;
uniform vec3 hair_colour, hair_tip_colour; uniform float hair_gloss, grey_share;
out vec4 result;
void main() {
    vec3 v = normalize(camera - world_position), t = normalize(strand_tangent), n = normalize(bulk_normal);
    float along = traits.x, chance = traits.y, outer = traits.z;
    vec3 albedo = mix(hair_colour, hair_tip_colour, ramp(0.2, 1.0, along)) * (0.62 + 0.76 * chance);
    if (fract(chance * 17.31) < grey_share) albedo = mix(albedo, vec3(0.26, 0.255, 0.25), 0.45);
    // The diffuse light of a strand sits between that of a fibre and that of the whole coiffure.
    vec3 across = normalize(n - t * dot(n, t) + 1e-4);
    Surface s = Surface(albedo, normalize(mix(n, across, 0.55)), 1.0, 0.0, 0.10, mix(0.30, 1.0, outer) * mix(0.62, 1.0, ramp(0.0, 0.25, along)));
    float lit = mix(1.0, lit_share(light_position, 0.010), 0.85);
    vec3 colour = shade(s, v, lit);
    vec3 h = normalize(key_direction + v);
    float shift = 0.10 * (chance - 0.5), a = dot(normalize(t + (shift - 0.06) * n), h), b = dot(normalize(t + (shift + 0.14) * n), h);
    float facing = ramp(-0.25, 0.5, dot(n, key_direction));
    colour += key_colour * lit * facing * hair_gloss * s.ao * (0.035 * (0.25 + 0.75 * ramp(6.9, 7.8, head_position.y)) * pow(max(1.0 - a * a, 0.0), 26.0) + 0.42 * albedo * pow(max(1.0 - b * b, 0.0), 11.0));
    vec3 hr = normalize(rim_direction + v); float c = dot(t, hr);
    colour += rim_colour * s.ao * hair_gloss * ramp(-0.1, 0.5, dot(n, rim_direction)) * (0.04 + 0.5 * albedo) * pow(max(1.0 - c * c, 0.0), 6.0);
    result = vec4(develop(colour), 1.0);
}
