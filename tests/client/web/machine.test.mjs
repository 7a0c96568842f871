import assert from "node:assert/strict";
import { test } from "node:test";

import { LONGEST_BACKOFF_MS, advance, backoffMs, initialState, isActive, isOpen } from "../../../client/web/machine.js";

/** Feeds events, each stamped with the generation of the moment unless it brings its own; gives state and all effects. */
function run(events, state = initialState(), nowMs = 1000) {
  const effects = [];
  for (const event of events) {
    const step = advance(state, event, nowMs);
    state = step.state;
    effects.push(...step.effects.map((effect) => effect.type));
  }
  return { state, effects };
}

const START = { type: "start", source: "microphone" };
const server = (state, generation = 1) => ({ type: "server", state, engine: "ready", generation });
const ANSWERED = { type: "answered", generation: 1 };
const LIVE = [START, { type: "source_ready" }, ANSWERED, server("warming"), server("live")];

test("A conversation opens the voice, then the peer, and becomes live.", () => {
  const { state, effects } = run(LIVE);
  assert.equal(state.phase, "live");
  assert.equal(state.again, true);
  assert.deepEqual(effects, ["open_source", "open_peer"]);
  assert.ok(isOpen(state) && isActive(state));
});

test("A refused microphone ends in failed with its problem, and start tries again.", () => {
  const problem = { code: "microphone_refused" };
  const { state } = run([START, { type: "source_failed", problem }]);
  assert.equal(state.phase, "failed");
  assert.deepEqual(state.problem, problem);
  const again = run([{ type: "start", source: "sample" }], state);
  assert.equal(again.state.phase, "asking");
  assert.equal(again.state.problem, null);
  assert.equal(again.state.source, "sample");
});

test("A busy server is asked again exactly when it said, by itself.", () => {
  const refused = { type: "refused", status: 503, code: "session_limit_reached", retryAfterS: 7, generation: 1, random: 0.5 };
  const { state, effects } = run([START, { type: "source_ready" }, refused]);
  assert.equal(state.phase, "waiting");
  assert.equal(state.reason, "busy");
  assert.equal(state.retryAtMs, 1000 + 7000);
  assert.deepEqual(effects.slice(-2), ["close_peer", "arm_retry"]);
  const retried = run([{ type: "retry_due" }], state);
  assert.equal(retried.state.phase, "offering");
  assert.equal(retried.state.generation, 2);
  assert.deepEqual(retried.effects, ["open_peer"]);
});

test("An engine that is not ready is waited for with its own reason.", () => {
  const refused = { type: "refused", status: 503, code: "engine_not_ready", retryAfterS: null, generation: 1, random: 0 };
  const { state } = run([START, { type: "source_ready" }, refused]);
  assert.equal(state.reason, "engine");
  assert.equal(state.retryAtMs, 1000 + 5000);
  assert.equal(run([START, { type: "source_ready" }, { ...refused, code: "answer_timeout" }]).state.reason, "unreachable");
});

test("A refusal that waiting cannot cure fails with the server's words.", () => {
  const refused = { type: "refused", status: 400, code: "bad_sdp", detail: "no audio", generation: 1, random: 0 };
  const { state, effects } = run([START, { type: "source_ready" }, refused]);
  assert.deepEqual(state.problem, { code: "bad_sdp", detail: "no audio" });
  assert.deepEqual(effects.slice(-2), ["close_peer", "close_source"]);
});

test("A server without room for the chosen upload leaves the choice to the user.", () => {
  const refused = { type: "refused", status: 503, code: "upload_limit_reached", retryAfterS: 5, generation: 1, random: 0 };
  const { state } = run([START, { type: "source_ready" }, refused]);
  assert.equal(state.phase, "failed");
  assert.equal(state.problem.code, "upload_limit_reached");
});

test("A page that comes back while it was offering tries again.", () => {
  const { state, effects } = run([START, { type: "source_ready" }, { type: "lost", random: 0.5 }]);
  assert.equal(state.phase, "waiting");
  assert.equal(state.reason, "unreachable");
  assert.deepEqual(effects.slice(-2), ["close_peer", "arm_retry"]);
});

test("A lost connection keeps the voice, waits, and remembers that it was live.", () => {
  const { state, effects } = run([...LIVE, { type: "lost", generation: 1, random: 0.5 }]);
  assert.equal(state.phase, "waiting");
  assert.equal(state.reason, "lost");
  assert.equal(state.again, true);
  assert.ok(!effects.includes("close_source"));
});

test("A session that the server closes is a lost connection.", () => {
  const { state } = run([...LIVE, { ...server("closed"), random: 0.5 }]);
  assert.equal(state.phase, "waiting");
  assert.equal(state.reason, "lost");
});

test("The wait grows with every failure in a row and starts over once live.", () => {
  let { state } = run([...LIVE, { type: "lost", generation: 1, random: 0.5 }]);
  const waits = [];
  for (let generation = 2; generation < 9; generation++) {
    ({ state } = run([{ type: "retry_due" }, { type: "unreachable", generation, random: 0.5 }], state));
    waits.push(state.retryAtMs - 1000);
  }
  assert.deepEqual(waits, [1000, 2000, 4000, 8000, 10000, 10000, 10000]);
  ({ state } = run([{ type: "retry_due" }, { type: "answered", generation: 9 }, server("live", 9)], state));
  assert.equal(state.failures, 0);
  assert.equal(state.reason, null);
});

test("Back-off is spread by at most a fifth and bounded.", () => {
  assert.equal(backoffMs(0, 0), 400);
  assert.ok(backoffMs(0, 0.999) <= 600);
  assert.ok(backoffMs(1e6, 0.999) <= LONGEST_BACKOFF_MS * 1.2);
});

test("Events of an earlier attempt change nothing.", () => {
  const { state } = run([...LIVE, { type: "lost", generation: 1, random: 0.5 }, { type: "retry_due" }]);
  for (const event of [ANSWERED, server("live"), { type: "lost", generation: 1, random: 0 }]) {
    assert.equal(advance(state, event, 2000).state, state);
  }
});

test("Stop works in every phase and frees everything.", () => {
  const paths = [[START], [START, { type: "source_ready" }], LIVE, [...LIVE, { type: "lost", generation: 1, random: 0 }]];
  for (const path of paths) {
    const { state, effects } = run([...path, { type: "stop" }]);
    assert.equal(state.phase, "idle");
    assert.deepEqual(effects.slice(-2), ["close_peer", "close_source"]);
  }
  assert.equal(run([{ type: "stop" }]).effects.length, 0);
});

test("A late answer after stop is ignored.", () => {
  const { state } = run([START, { type: "source_ready" }, { type: "stop" }, ANSWERED]);
  assert.equal(state.phase, "idle");
});

test("A network that comes back cuts the wait short, but does not push into a full server.", () => {
  const lost = run([...LIVE, { type: "lost", generation: 1, random: 0.5 }, { type: "online" }]);
  assert.equal(lost.state.phase, "offering");
  const refused = { type: "refused", status: 503, code: "session_limit_reached", retryAfterS: 5, generation: 1, random: 0 };
  assert.equal(run([START, { type: "source_ready" }, refused, { type: "online" }]).state.phase, "waiting");
});

test("A microphone that goes away ends the conversation with that problem.", () => {
  const { state } = run([...LIVE, { type: "source_lost", problem: { code: "microphone_lost" } }]);
  assert.equal(state.phase, "failed");
  assert.equal(state.problem.code, "microphone_lost");
});

test("Resting is open and keeps the engine's state.", () => {
  const { state } = run([...LIVE, { type: "server", state: "resting", engine: "restarting", generation: 1 }]);
  assert.equal(state.phase, "resting");
  assert.equal(state.engine, "restarting");
  assert.ok(isOpen(state));
});

test("An event without a name in the machine is a programmer's mistake.", () => {
  assert.throws(() => advance(initialState(), { type: "nonsense" }, 0), /unknown event nonsense/);
});
