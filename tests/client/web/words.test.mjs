import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { initialState } from "../../../client/web/machine.js";
import { microphoneProblem } from "../../../client/web/voice.js";
import { problemOf, statusOf, words } from "../../../client/web/words.js";

const NOW = { isMuted: false, isSlow: false, nowMs: 0 };
const INFO = { engine: { state: "ready" }, sessions: { active: 0, max: 1 } };
const at = (change, now = {}) => statusOf({ ...initialState(), ...change }, { info: INFO, ...NOW, ...now });

test("Every phase has words of its own.", () => {
  const phases = ["idle", "asking", "connecting", "warming", "live", "resting", "waiting", "failed"];
  const titles = phases.map((phase) => at({ phase }).title);
  assert.equal(new Set(titles).size, phases.length, titles.join(" | "));
});

test("A wait counts down and says when it tries again.", () => {
  const busy = { phase: "waiting", reason: "busy", retryAtMs: 4200 };
  assert.match(at(busy).hint, /in 5 s/);
  assert.match(at(busy, { nowMs: 3300 }).hint, /in 1 s/);
  assert.match(at(busy, { nowMs: 9000 }).hint, /now/);
});

test("Waiting for an engine that does not start says where to look.", () => {
  const waiting = { phase: "waiting", reason: "engine", retryAtMs: 1000 };
  assert.match(at(waiting).title, /getting ready/);
  const failed = at(waiting, { info: { ...INFO, engine: { state: "failed" } } });
  assert.match(failed.title, /does not start/);
  assert.match(failed.hint, /log says why.*in 1 s/);
});

test("Idle tells what the server is doing.", () => {
  assert.match(at({}, { info: null }).title, /not reachable/);
  for (const [state, pattern] of [["starting", /starting/], ["restarting", /restarting/], ["failed", /does not start/]]) {
    assert.match(at({}, { info: { ...INFO, engine: { state } } }).title, pattern);
  }
  assert.match(at({}, { info: { ...INFO, sessions: { active: 1, max: 1 } } }).title, /speaking/);
});

test("An engine that misses the pace is called slower than live, before and during a conversation, without flicker.", () => {
  const [idle, live, resting] = ["idle", "live", "resting"].map((phase) => at({ phase, engine: "ready" }, { isSlow: true }));
  for (const status of [idle, live, resting]) {
    assert.match(status.title, /slower than live/i);
    assert.equal(status.tone, "alert");
    assert.doesNotMatch(status.hint, /\d/, "figures that change would be read out again and again");
  }
  assert.deepEqual(live, resting);
  assert.match(at({ phase: "resting", engine: "restarting" }, { isSlow: true }).title, /restarts/);
});

test("The verdict on the pace has its figures, and a pace that holds needs none.", () => {
  const { verdict } = words.ledger;
  const held = { paceMs: 240, windowMs: 480, steps: 4, numSteps: 4 };
  assert.equal(verdict(held), "");
  assert.match(verdict({ ...held, steps: 2 }), /2 of its 4 steps/);
  assert.match(verdict({ ...held, steps: 2, paceMs: 1521.4 }), /480 ms takes 1,521 ms/);
});

test("Who waits for an engine that reads a prompt first is told so.", () => {
  assert.equal(at({ phase: "offering" }).hint, "");
  const info = { ...INFO, engine: { state: "ready", accepts_prompt: true } };
  assert.match(at({ phase: "offering" }, { info }).hint, /reads the prompt/);
});

test("Whatever getUserMedia rejects with has words.", () => {
  const names = ["NotAllowedError", "NotFoundError", "NotReadableError", "OverconstrainedError", "SecurityError", "TypeError"];
  for (const name of names) assert.ok(words.problems[microphoneProblem({ name })], name);
  assert.notEqual(microphoneProblem({ name: "NotAllowedError" }), microphoneProblem({ name: "NotFoundError" }));
});

test("Every code that the voice can fail with has words.", () => {
  const source = readFileSync(new URL("../../../client/web/voice.js", import.meta.url), "utf8");
  const codes = [...source.matchAll(/"(microphone_\w+|insecure_context|sample_missing)"/g)].map((match) => match[1]);
  assert.ok(codes.length >= 7);
  for (const code of codes) assert.ok(words.problems[code], code);
});

test("A refusal without words of its own shows the server's.", () => {
  const state = { ...initialState(), problem: { code: "too_large", detail: "the offer has 300000 bytes" } };
  assert.match(problemOf(state).text, /300000 bytes/);
});

test("Misses are listed by stage with the windows that were left out, and none is said as none.", () => {
  assert.equal(words.ledger.missed({ wait: 0, decode: 2, steps: 1 }, 0), "2 decode, 1 denoise");
  assert.equal(words.ledger.missed({ wait: 0, decode: 2 }, 14), "2 decode, 14 left out");
  assert.equal(words.ledger.missed({ wait: 0 }, 0), "none");
});
