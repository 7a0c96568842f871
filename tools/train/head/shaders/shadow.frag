flat in int part_id;
void main() { if (part_id >= 2) discard; }
