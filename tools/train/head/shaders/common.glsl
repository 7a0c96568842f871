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
float bell(float x) { return exp(-x * x); }
float bell(vec2 x) { return exp(-dot(x, x)); }
// Filmic curve, then the sRGB transfer.
vec3 develop(vec3 c) {
    c = max(c * 0.72, 0.0);
    vec3 film = (c * (2.35 * c + 0.05)) / (c * (2.30 * c + 0.58) + 0.12);
    return pow(clamp(film, 0.0, 1.0), vec3(1.0 / 2.2));
}
