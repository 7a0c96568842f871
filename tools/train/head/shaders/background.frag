in vec2 place; out vec4 result;
uniform vec3 back_low, back_high, back_accent; uniform int back_kind; uniform float back_seed, back_glow;
float r(float k) { return hash3(vec3(k, back_seed, 3.0)); }
float box(vec2 p, vec2 centre, vec2 half_size, float blur) {
    vec2 d = ramp(half_size + blur, half_size - blur, abs(p - centre));
    return d.x * d.y;
}
void main() {
    vec2 p = place * vec2(0.667, 1.0);
    vec3 c = mix(back_low, back_high, ramp(-1.1, 1.1, place.y + 0.4 * (r(1.0) - 0.5) * place.x));
    if (back_kind == 1) {                                  // lights out of focus
        for (int i = 0; i < 16; i++) {
            float k = float(i) * 5.0; vec2 q = vec2(r(k + 11.0), r(k + 12.0)) * vec2(1.9, 2.2) - vec2(0.95, 1.1);
            float size = mix(0.07, 0.20, r(k + 13.0)), d = length(p - q);
            c += back_accent * (0.05 + 0.22 * r(k + 14.0)) * ramp(size, size * 0.82, d) * (0.8 + 0.4 * ramp(0.6 * size, size, d));
        }
    } else if (back_kind == 2) {                           // a room: window, shelf, plant
        float side = r(2.0) < 0.5 ? -1.0 : 1.0;
        float window = box(p, vec2(side * 0.50, 0.42), vec2(0.26, 0.46), 0.07);
        vec3 day = mix(vec3(0.75, 0.82, 0.90), back_accent * 1.5 + 0.35, 0.35);
        c = mix(c, day * (0.75 + 0.35 * place.y), window * 0.85);
        c = mix(c, c * 0.55, window * box(p, vec2(side * 0.50, 0.40), vec2(0.012, 0.5), 0.02));
        float shelf = box(p, vec2(-side * 0.50, 0.10 + 0.3 * r(4.0)), vec2(0.24, 0.018), 0.03);
        c = mix(c, back_low * 0.5, shelf * 0.8);
        for (int i = 0; i < 5; i++) {
            float k = float(i); vec2 q = vec2(-side * (0.34 + 0.08 * k), 0.21 + 0.3 * r(4.0) + 0.04 * r(k + 20.0));
            vec3 book = mix(back_accent, vec3(r(k + 30.0), r(k + 40.0), r(k + 50.0)) * 0.4, 0.5);
            c = mix(c, book, 0.55 * box(p, q, vec2(0.030, 0.08), 0.03));
        }
        float plant = fbm(vec3(p * 4.0 + 9.0 * r(6.0), back_seed)) * bell(vec2((p.x + side * 0.62) * 3.4, (p.y + 0.55) * 2.2));
        c = mix(c, vec3(0.07, 0.16, 0.07), ramp(0.18, 0.42, plant) * 0.8);
    } else if (back_kind == 3) {                           // foliage or a street out of focus
        float leaf = fbm(vec3(p * 2.3 + 3.0 * r(7.0), back_seed));
        c = mix(c, back_accent, ramp(0.35, 0.75, leaf) * 0.75);
        c += back_accent * 0.45 * ramp(0.62, 0.80, fbm(vec3(p * 4.5 - 5.0 * r(8.0), back_seed + 9.0)));
    } else {                                               // studio paper with a soft spot
        c = mix(c, c * (0.93 + 0.14 * fbm(vec3(p * 3.0, back_seed))), 0.8);
    }
    c += back_glow * back_high * bell(vec2((p.x - 0.3 * (r(9.0) - 0.5)) * 1.5, (p.y - 0.15) * 1.1));
    c *= 1.0 - 0.16 * dot(place, place) * 0.5;
    result = vec4(develop(c) + (hash3(vec3(gl_FragCoord.xy, 1.0)) - 0.5) / 255.0, 1.0);
}
