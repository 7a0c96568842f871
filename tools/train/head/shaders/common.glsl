// Noise from integer hashes: the same numbers on every driver.
float hash3(vec3 cell) {
    uvec3 u = uvec3(ivec3(cell) + ivec3(8192)) * uvec3(1597334673u, 3812015801u, 2798796415u);
    uint q = (u.x ^ u.y ^ u.z) * 1597334673u;
    q ^= q >> 15;
    return float((q * 2246822519u) >> 8) / 16777216.0;
}
float noise(vec3 x) {
    vec3 i = floor(x), f = fract(x);
    f = f * f * (3.0 - 2.0 * f);
    return mix(mix(mix(hash3(i), hash3(i + vec3(1, 0, 0)), f.x),
                   mix(hash3(i + vec3(0, 1, 0)), hash3(i + vec3(1, 1, 0)), f.x), f.y),
               mix(mix(hash3(i + vec3(0, 0, 1)), hash3(i + vec3(1, 0, 1)), f.x),
                   mix(hash3(i + vec3(0, 1, 1)), hash3(i + vec3(1, 1, 1)), f.x), f.y), f.z);
}
float fbm(vec3 p) { return 0.5 * noise(p) + 0.28 * noise(p * 2.03 + 7.1) + 0.15 * noise(p * 4.1 + 3.3) + 0.07 * noise(p * 8.3); }
// smoothstep whose edges may come in either order.
float ramp(float a, float b, float x) {
    float t = clamp((x - a) / (b - a), 0.0, 1.0);
    return t * t * (3.0 - 2.0 * t);
}
vec2 ramp(vec2 a, vec2 b, vec2 x) { return vec2(ramp(a.x, b.x, x.x), ramp(a.y, b.y, x.y)); }
float bell(float x) { return exp(-x * x); }
float bell(vec2 x) { return exp(-dot(x, x)); }
// Filmic curve with a soft shoulder, then the sRGB transfer.
vec3 develop(vec3 c) {
    c = max(c, 0.0) * 0.70;
    float peak = max(c.r, max(c.g, c.b)) + 1e-5;
    vec3 film = c * (1.0 + c * 0.12) / (1.0 + 0.62 * c);
    // Part of the curve acts on brightness alone, which keeps the hue of bright skin.
    vec3 hue = c / peak * (peak * (1.0 + peak * 0.12) / (1.0 + 0.62 * peak));
    return pow(clamp(mix(film, hue, 0.35) * 1.22 - 0.006, 0.0, 1.0), vec3(1.0 / 2.2));
}
