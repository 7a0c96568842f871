import assert from "node:assert/strict";
import { test } from "node:test";

import { levelOf } from "../../../client/web/meter.js";

const constant = (value) => new Float32Array(1024).fill(value);

test("Silence is 0 and full scale is 1.", () => {
  assert.equal(levelOf(constant(0)), 0);
  assert.ok(Math.abs(levelOf(constant(1)) - 1) < 1e-6);
});

test("The level is linear in decibels down to -60 dBFS.", () => {
  assert.ok(Math.abs(levelOf(constant(10 ** (-30 / 20))) - 0.5) < 1e-3);
  assert.equal(levelOf(constant(10 ** (-61 / 20))), 0);
});

test("No samples are silence.", () => {
  assert.equal(levelOf(new Float32Array(0)), 0);
});
