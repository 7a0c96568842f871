import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Ledger, MAX_WINDOWS, STAGES, axisMs, toRow } from "../../../client/web/ledger.js";

const protocol = readFileSync(new URL("../../../client/PROTOCOL.md", import.meta.url), "utf8");

/** The example of that name in PROTOCOL.md. */
const example = (name) => JSON.parse(protocol.match(new RegExp("```json " + name + "\\n([^`]*)```"))[1]);

test("The parts of a window add up to its latency, with one part per denoising step.", () => {
  const message = example("ledger");
  const row = toRow(message);
  const sumMs = row.parts.reduce((sum, part) => sum + part.ms, 0);
  assert.ok(Math.abs(sumMs - message.latency_ms) < 1, `${sumMs} is not ${message.latency_ms}`);
  assert.deepEqual(row.parts.filter((part) => part.stage === "steps").map((part) => part.step), [0, 1, 2, 3]);
  assert.deepEqual([...new Set(row.parts.map((part) => part.stage))], STAGES);
});

test("Every stage of the protocol is drawn.", () => {
  assert.deepEqual(Object.keys(example("ledger").stages_ms).sort(), [...STAGES].sort());
  assert.deepEqual(Object.keys(example("stats").misses).sort(), [...STAGES].sort());
});

test("The ledger holds the newest windows and no more.", () => {
  const ledger = new Ledger();
  for (let window = 0; window < 3 * MAX_WINDOWS; window++) ledger.add({ ...example("ledger"), window });
  assert.equal(ledger.rows.length, MAX_WINDOWS);
  assert.equal(ledger.last.window, 3 * MAX_WINDOWS - 1);
  ledger.clear();
  assert.equal(ledger.last, undefined);
});

test("The axis leaves room above the budget and is bounded for absurd windows.", () => {
  assert.equal(axisMs([], 800), 1000);
  assert.equal(axisMs([{ latencyMs: 1250 }], 800), 1400);
  assert.equal(axisMs([{ latencyMs: 1e9 }], 800), 3200);
});
