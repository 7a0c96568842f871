in vec3 world_position, world_normal, rest_position, posed_position; in vec2 mask_uv; flat in int part_id; in vec4 light_position; in float baked_ao;
uniform sampler2D masks;
uniform vec3 skin_colour, lip_colour, hair_colour, iris_colour, cloth_colour, cloth_accent, brow_colour;
uniform float blush, freckles, age, makeup, mottle, oil, skin_seed;
uniform float brow_strength, brow_height, brow_arch, brow_thickness, brow_length;
uniform float stubble, moustache, beard_seed;
uniform float scalp_cover, hairline[10], hairline_softness;
uniform int cloth_kind, cloth_pattern; uniform float neckline;
uniform float eye_height, lash_strength;
out vec4 result;
const float HAIRLINE_ANGLES[10] = float[10](0.0, 0.45, 0.75, 0.95, 1.15, 1.35, 1.70, 2.10, 2.50, 3.15);
float hairline_y(vec3 p) {
    float phi = abs(atan(p.x, p.z - 0.35)), y = hairline[9];
    for (int i = 8; i >= 0; i--)
        if (phi <= HAIRLINE_ANGLES[i + 1]) y = mix(hairline[i], hairline[i + 1], clamp((phi - HAIRLINE_ANGLES[i]) / (HAIRLINE_ANGLES[i + 1] - HAIRLINE_ANGLES[i]), 0.0, 1.0));
    return y;
}
float scalp(vec3 p) {
    float ax = abs(p.x), d = p.y - hairline_y(p) + 0.035 * (noise(p * 20.0) - 0.5) + 0.05 * (noise(p * vec3(85, 30, 85)) - 0.5);
    float ear = step(0.70, ax) * step(p.y, 7.48) * step(0.02, p.z);
    return ramp(-0.5 * hairline_softness, hairline_softness, d) * step(6.5, p.y) * (1.0 - ear);
}
vec3 bumped(vec3 n, vec3 p, float size, float height) {
    vec3 g = vec3(noise(p * size), noise(p * size + 17.3), noise(p * size + 41.9)) - 0.5;
    return normalize(n + height * g);
}
Surface skin(vec3 n, vec4 mask, float front) {
    vec3 p = rest_position; float ax = abs(p.x);
    vec3 a = skin_colour; float gap = step(0.9, p.z);
    // Blood near the surface: cheeks, nose, ears, chin; sallow round the mouth and on the forehead.
    float cheek = bell(vec2((ax - 0.50) / 0.25, (p.y - 6.93) / 0.22)) * gap;
    float nose = bell(vec2(ax / 0.15, (p.y - 6.97) / 0.15)) * ramp(1.35, 1.6, p.z);
    float ear = ramp(0.70, 0.82, ax) * ramp(6.7, 6.9, p.y) * ramp(7.5, 7.3, p.y);
    float chin = bell(vec2(ax / 0.20, (p.y - 6.33) / 0.12)) * gap;
    float red = (0.60 * cheek + 0.42 * nose + 0.20 * chin) * blush + 0.35 * ear;
    a = mix(a, a * vec3(1.10, 0.77, 0.72), clamp(red, 0.0, 1.0));
    float forehead = bell(vec2(ax / 0.6, (p.y - 7.85) / 0.22)) * gap;
    a = mix(a, a * vec3(1.02, 1.0, 0.92), 0.5 * forehead);
    float blotch = fbm(p * 4.0 + skin_seed) - 0.5, fine = noise(p * 34.0 + skin_seed) - 0.5;
    a *= 1.0 + mottle * (0.22 * blotch + 0.07 * fine);
    a = mix(a, a * vec3(1.06, 0.90, 0.88), mottle * clamp(fbm(p * 9.0 + skin_seed * 1.7) - 0.42, 0.0, 1.0) * 1.2);
    // Shadows that skin always has: under the eyes, folds beside the nose, under the lip, inner eye corners.
    float hollow = bell(vec2((ax - 0.29) / 0.15, (p.y - 7.13 + 0.10 * (ax - 0.29)) / 0.055)) * gap;
    a = mix(a, a * vec3(0.80, 0.70, 0.74), hollow * (0.35 + 0.45 * age));
    float fold_line = ax - (0.205 + 0.62 * (6.93 - p.y) - 0.35 * (6.93 - p.y) * (6.93 - p.y) * 2.0);
    float fold = bell(fold_line / 0.030) * ramp(6.52, 6.68, p.y) * ramp(6.97, 6.86, p.y) * gap;
    a *= 1.0 - fold * (0.10 + 0.26 * age);
    float corner = bell(vec2((ax - 0.115) / 0.045, (p.y - 7.27) / 0.05)) * gap;
    a = mix(a, a * vec3(0.88, 0.70, 0.68), 0.5 * corner);
    float lid = bell(vec2((ax - 0.31) / 0.19, (p.y - 7.40) / 0.055)) * gap;
    a = mix(a, a * vec3(0.84, 0.72, 0.72), lid * 0.45);
    a = mix(a, a * vec3(0.55, 0.45, 0.46), lid * 0.65 * makeup);
    a *= 1.0 - 0.10 * bell(vec2(ax / 0.20, (p.y - 6.44) / 0.035)) * gap;
    // Freckles.
    float spot = noise(p * 46.0 + skin_seed) * 0.6 + 0.4 * noise(p * 27.0 + 5.0);
    a = mix(a, a * vec3(0.72, 0.52, 0.40), freckles * ramp(0.66, 0.78, spot) * clamp(cheek + nose + 0.3 * forehead, 0.0, 1.0));
    // Wrinkles of age: forehead lines and crow's feet.
    float lines = ramp(0.55, 1.0, sin((p.y + 0.02 * noise(p * 6.0)) * 62.0)) * forehead;
    a *= 1.0 - 0.09 * max(0.0, age - 0.35) * lines;
    float body_ao = mix(mix(0.55, 1.0, baked_ao), baked_ao, ramp(6.15, 6.45, p.y + 0.3 * p.z - 0.3));
    Surface s = Surface(a, n, 0.50, 0.030, 1.0, body_ao);
    float shine = bell(vec2(ax / 0.09, (p.y - 7.02) / 0.20)) + 0.8 * forehead + 0.5 * cheek + 0.5 * chin;
    s.rough = mix(0.56, 0.42, clamp(oil * shine, 0.0, 1.0));
    s.spec = 0.026 + 0.012 * oil * clamp(shine, 0.0, 1.0);
    s.normal = bumped(bumped(n, p, 95.0, 0.10), p, 36.0, 0.05 + 0.06 * age);
    // Lips: a soft border, fine creases, moist.
    float lip = ramp(0.15, 0.85, mask.r) * front;
    float crease = noise(vec3(p.x * 75.0, p.y * 9.0, 3.0));
    vec3 lips = lip_colour * (0.86 + 0.22 * crease) * mix(1.0, 0.80, bell((p.y - 6.605) / 0.020));
    s.albedo = mix(s.albedo, lips, lip * 0.92);
    s.rough = mix(s.rough, mix(0.42, 0.30, makeup), lip); s.spec = mix(s.spec, 0.040, lip);
    s.normal = normalize(mix(s.normal, bumped(n, vec3(p.x * 2.0, p.y * 0.3, 0.0), 60.0, 0.16), lip));
    return s;
}
Surface facial_hair(Surface s, float lip) {
    vec3 p = rest_position; float ax = abs(p.x);
    float rough = noise(p * 13.0 + beard_seed) - 0.5, ends = noise(p * 45.0) - 0.5;
    // Cheeks and jaw, then the chin below the lip; the skin between the moustache and the jaw stays thin.
    float low = ramp(6.10, 6.30, p.y + 0.10 * rough) * ramp(-0.05, 0.40, p.z + 0.35 * ax);
    float cheek_edge = 6.55 + 0.85 * max(ax - 0.30, 0.0) - 0.35 * max(ax - 0.60, 0.0) + 0.05 * rough + 0.04 * ends;
    float jaw = ramp(0.10, -0.14, p.y - cheek_edge);
    float mouth = ramp(0.9, 1.35, length(vec2(ax / 0.275, (p.y - 6.60) / 0.135)));
    float soul = bell(vec2(ax / 0.055, (p.y - 6.42) / 0.05));
    float beard = low * max(jaw * mouth, soul);
    float arc = p.y - (6.752 - 0.95 * ax * ax);
    float upper = ramp(0.070, 0.025, abs(arc) + 0.02 * ends) * ramp(0.36, 0.24, ax + 0.04 * ends) * step(1.15, p.z) * mix(0.75, 1.0, ramp(0.0, 0.05, ax));
    float strand = noise(vec3(p.x * 75.0, p.y * 26.0, p.z * 75.0) + beard_seed) * 0.6 + 0.4 * noise(p * 120.0);
    float both = clamp(max(beard * stubble, upper * moustache), 0.0, 1.0) * (1.0 - lip);
    float cover = both * mix(0.55, 1.0, ramp(0.25, 0.75, strand + 0.5 * both - 0.15));
    vec3 tone = mix(s.albedo * vec3(0.72, 0.73, 0.78), hair_colour * (0.60 + 0.70 * strand) + 0.004, ramp(0.15, 0.7, both));
    s.albedo = mix(s.albedo, tone, clamp(cover, 0.0, 0.93));
    s.spec *= 1.0 - 0.8 * cover; s.scatter *= 1.0 - 0.7 * cover; s.rough = mix(s.rough, 0.75, cover);
    s.normal = normalize(s.normal + cover * 0.40 * (vec3(noise(p * vec3(80, 30, 80)), noise(p * 70.0), 0.5) - 0.5));
    return s;
}
Surface brows(Surface s) {
    vec3 p = rest_position; float ax = abs(p.x);
    float t = (ax - 0.115) / (0.47 * brow_length), k = clamp(t, 0.0, 1.0);
    float spine = 7.490 + brow_height + brow_arch * sin(pow(k, 1.4) * 2.6) + 0.034 * k - 0.038 * k * k * k;
    float thick = mix(0.050, 0.015, pow(k, 1.6)) * brow_thickness, d = (p.y - spine) / thick;
    // Strokes lean outwards, upright near the nose and flat at the tail.
    float lean = mix(2.2, 0.35, ramp(0.0, 0.55, k));
    float stroke = noise(vec3((ax - (p.y - spine) / lean) * 62.0, (p.y - spine) * 16.0, sign(p.x) * 9.0 + 20.0));
    stroke = 0.65 * stroke + 0.35 * noise(vec3((ax - (p.y - spine) / lean) * 130.0, p.y * 22.0, sign(p.x) * 5.0 + 40.0));
    float body = ramp(-0.03, 0.16, t + 0.10 * (stroke - 0.5)) * ramp(1.06, 0.72, t) * ramp(1.15, 0.25, abs(d) + 0.55 * (stroke - 0.5));
    float density = mix(0.70, 1.0, ramp(0.0, 0.35, k)) * brow_strength;
    float cover = clamp(body * density * (0.42 + 0.95 * stroke), 0.0, 0.95) * ramp(0.95, 1.1, p.z);
    s.albedo = mix(s.albedo, brow_colour * (0.7 + 0.5 * stroke), cover);
    s.spec *= 1.0 - 0.85 * cover; s.scatter *= 1.0 - 0.6 * cover;
    return s;
}
Surface under_hair(Surface s) {
    float cover = scalp(rest_position) * scalp_cover;
    float strand = noise(rest_position * vec3(70, 20, 70));
    s.albedo = mix(s.albedo, hair_colour * (0.40 + 0.45 * strand), cover);
    s.spec = mix(s.spec, 0.008, cover); s.scatter *= 1.0 - 0.8 * cover;
    return s;
}
Surface eyeball(vec3 n, vec3 v) {
    vec3 p = rest_position, centre = vec3(sign(p.x) * 0.311, 7.285, 1.245), d = normalize(p - centre);
    float angle = acos(clamp(d.z, -1.0, 1.0)), around = atan(d.y, d.x), edge = 0.495;
    vec3 white = vec3(0.64, 0.61, 0.59) - vec3(0.02, 0.13, 0.13) * ramp(0.55, 1.15, angle);
    white = mix(white, white * vec3(1.0, 0.86, 0.84), 0.6 * ramp(0.55, 0.75, noise(vec3(around * 9.0, angle * 4.0, 8.0))) * ramp(0.5, 1.0, angle));
    float fibre = noise(vec3(around * 11.0, angle * 7.0, 2.0)) * 0.6 + 0.4 * noise(vec3(around * 24.0, angle * 11.0, 6.0));
    vec3 iris = iris_colour * (0.55 + 0.95 * fibre) * mix(1.30, 0.80, ramp(0.20, 0.42, angle));
    iris = mix(iris, iris * 1.35, bell((angle - 0.29) / 0.06));
    iris *= 1.0 - 0.78 * ramp(0.395, 0.475, angle);
    vec3 a = mix(iris, white, ramp(edge - 0.035, edge + 0.035, angle));
    a = mix(vec3(0.004), a, ramp(0.185, 0.225, angle));
    float lid = posed_position.y - eye_height;
    float ao = mix(0.42, 1.0, ramp(0.105, 0.015, lid)) * mix(0.75, 1.0, ramp(-0.12, -0.06, lid)) * mix(1.0, 0.45, ramp(0.60, 1.15, angle));
    return Surface(a, n, 0.18, 0.03, 0.30, ao);
}
vec3 catch_light(vec3 n, vec3 v, float lit) {
    vec3 bounce = reflect(-v, n), towards = normalize(key_direction * vec3(0.75, 0.75, 1.0) + vec3(0.0, 0.10, 0.15));
    vec3 c = key_colour * 0.80 * ramp(0.968, 0.982, dot(bounce, towards)) * mix(0.6, 1.0, lit);
    return c + (fill_colour * 0.22) * ramp(0.93, 0.985, dot(bounce, normalize(fill_direction * vec3(0.8, 0.5, 1.0))));
}
Surface teeth(vec3 n) {
    vec3 p = rest_position; bool upper = p.y > 6.66 || (p.y > 6.60 && p.z > 1.47);
    float angle = atan(p.x, p.z - 0.98), cell = abs(sin(angle * 15.0));
    vec3 a = vec3(0.80, 0.76, 0.68) * mix(0.62, 1.0, ramp(0.0, 0.30, cell));
    float gum = upper ? ramp(6.745, 6.775, p.y + 0.02 * cell) : ramp(6.500, 6.475, p.y - 0.02 * cell);
    a = mix(a, vec3(0.46, 0.16, 0.15), gum);
    float depth = ramp(1.08, 1.46, p.z);
    return Surface(a, n, 0.28, 0.040, 0.45, mix(0.06, 0.90, depth * depth) * (upper ? 1.0 : 0.80));
}
Surface cloth(vec3 n) {
    vec3 p = rest_position; float ax = abs(p.x), front = ramp(-0.1, 0.7, p.z);
    float crew = neckline - 0.50 * ramp(0.85, 0.0, ax) * front;
    float vee = neckline - 0.08 - front * max(0.0, 0.92 - 1.35 * ax) * 0.95;
    float edge = cloth_kind == 0 ? crew : cloth_kind == 1 ? vee : mix(crew, vee, 0.30) + 0.05;
    if (p.y > edge) discard;
    float weave = noise(p * 110.0), below = edge - p.y;
    vec3 a = cloth_colour;
    if (cloth_pattern == 1) a = mix(a, cloth_accent, ramp(0.45, 0.55, abs(fract(p.y * 4.2) - 0.5) * 2.0));
    if (cloth_pattern == 2) a = mix(a, cloth_accent, 0.55 * (ramp(0.80, 0.90, abs(fract(p.x * 3.4) - 0.5) * 2.0) + ramp(0.80, 0.90, abs(fract(p.y * 3.4) - 0.5) * 2.0)));
    if (cloth_pattern == 3) a *= 0.86 + 0.30 * noise(p * vec3(26.0, 70.0, 26.0));
    float ao = mix(0.62, 1.0, ramp(0.0, 0.10, below));
    if (cloth_kind <= 1) {
        float band = ramp(0.105, 0.095, below);
        a *= mix(1.0, 0.90, band) * (1.0 - 0.28 * bell((below - 0.105) / 0.014));
    } else if (cloth_kind == 2) {                          // shirt: two collar wings and a button line
        float wing = 0.30 + 0.16 * bell((ax - 0.42) / 0.20) * front - 0.25 * ramp(0.10, 0.0, ax) * front;
        float on = ramp(wing + 0.012, wing - 0.012, below);
        a *= 1.0 - 0.45 * bell((below - wing - 0.018) / 0.022) * (1.0 - on) - 0.06 * on;
        float placket = bell((p.x - 0.055) / 0.008) * step(0.5, front);
        a *= 1.0 - 0.30 * placket * (1.0 - on);
        float button = ramp(0.022, 0.016, length(vec2(p.x, fract(p.y * 2.1) / 2.1 - 0.2))) * step(0.6, p.z);
        a = mix(a, vec3(0.75), 0.6 * button * (1.0 - on));
    } else {                                               // jacket over a light shirt
        float opening = 0.16 + 0.46 * clamp(p.y - 4.9, 0.0, 1.4), inner = ramp(opening + 0.012, opening - 0.012, ax) * ramp(0.15, 0.35, p.z);
        float lapel = opening + 0.34 * ramp(4.7, 5.6, p.y);
        vec3 jacket = a * (1.0 - 0.40 * bell((ax - lapel - 0.02) / 0.022)) * (1.0 - 0.30 * bell((ax - opening) / 0.03));
        vec3 shirt = cloth_accent * (1.0 - 0.35 * bell(max(opening - ax, 0.0) / 0.07)) * (1.0 - 0.35 * bell((below - 0.20) / 0.016));
        a = mix(jacket, shirt, inner);
    }
    a *= 0.90 + 0.20 * weave;
    vec3 m = bumped(bumped(n, p, 3.2, 0.55), p, 90.0, 0.20);
    return Surface(a, m, 0.85, 0.012, 0.05, ao * mix(0.8, 1.0, baked_ao));
}
void main() {
    vec3 n = normalize(world_normal), v = normalize(camera - world_position), p = rest_position;
    float alpha = 1.0, front = step(1.25, p.z), lit = lit_share(light_position, 0.0065);
    vec3 extra = vec3(0.0); Surface s;
    if (part_id == 0) {
        vec4 mask = texture(masks, mask_uv);
        s = skin(n, mask, front);
        s = facial_hair(s, mask.r * front);
        s = brows(s);
        s = under_hair(s);
        float inside = mask.a;
        s.albedo = mix(s.albedo, vec3(0.20, 0.035, 0.035), inside);
        s.ao *= mix(1.0, clamp((p.z - 1.42) / 0.16, 0.02, 0.8), inside); s.scatter *= 1.0 - 0.8 * inside; s.rough = mix(s.rough, 0.35, inside);
        lit *= mix(1.0, 0.35, inside);
        s.ao *= mix(0.85, 1.0, ramp(6.0, 6.35, p.y + 0.25 * (1.0 - ramp(0.2, 0.9, p.z))));
    } else if (part_id == 1) {
        s = eyeball(n, v); extra = catch_light(n, v, lit) * ramp(0.115, 0.05, posed_position.y - eye_height); lit = mix(lit, 1.0, 0.35) * mix(0.6, 1.0, s.ao);
    } else if (part_id == 2) {
        if (p.y < 6.53 || p.y > 6.785) discard;
        s = teeth(n); lit = mix(lit, 1.0, 0.55) * s.ao;
    } else if (part_id == 3) {
        if (p.y < 6.45) discard;
        s = Surface(vec3(0.56, 0.19, 0.19) * (0.85 + 0.3 * noise(p * 50.0)), n, 0.36, 0.035, 0.6, 0.62 * ramp(0.95, 1.42, p.z)); lit = mix(lit, 1.0, 0.2) * s.ao;
    } else if (part_id == 4) {
        s = Surface(mix(hair_colour * 0.15, vec3(0.006), 0.7), n, 1.0, 0.0, 0.0, 1.0);
        alpha = lash_strength * (p.y > 7.285 ? 0.62 : 0.16);
    } else {
        s = cloth(n);
    }
    result = vec4(develop(shade(s, v, lit) + extra), alpha);
}
