import assert from "node:assert/strict";
import { test } from "node:test";

import { SMALLEST_ZOOM, fitCrop, largestWidth, moveCrop, zoomCrop, zoomOf } from "../../../client/web/crop-geometry.js";

const ASPECT = 2 / 3;
const IMAGES = [
  { width_px: 3024, height_px: 4032 },
  { width_px: 4000, height_px: 1000 },
  { width_px: 64, height_px: 5000 },
];

function assertInside(crop, image) {
  assert.ok(crop.x_px >= 0 && crop.y_px >= 0, JSON.stringify(crop));
  assert.ok(crop.x_px + crop.width_px <= image.width_px + 1e-9, JSON.stringify(crop));
  assert.ok(crop.y_px + crop.height_px <= image.height_px + 1e-9, JSON.stringify(crop));
  assert.ok(Math.abs(crop.width_px / crop.height_px - ASPECT) < 1e-9, JSON.stringify(crop));
}

test("The largest frame touches two sides of the image.", () => {
  assert.equal(largestWidth(IMAGES[0], ASPECT), 4032 * ASPECT);
  assert.equal(largestWidth(IMAGES[2], ASPECT), 64);
});

test("However far it is moved or zoomed, the frame keeps its aspect and stays inside.", () => {
  for (const image of IMAGES) {
    let crop = fitCrop({ x_px: -50, y_px: 1e6, width_px: 1e6, height_px: 10 }, image, ASPECT);
    assertInside(crop, image);
    for (const [dx, dy, width] of [[-1e5, 7, 1], [33, 1e5, 30], [1e5, -1e5, 1e5], [5, 5, 200]]) {
      crop = moveCrop(crop, dx, dy, image, ASPECT);
      assertInside(crop, image);
      crop = zoomCrop(crop, width, image, ASPECT);
      assertInside(crop, image);
    }
  }
});

test("Zooming keeps the centre where the image allows it.", () => {
  const image = IMAGES[0];
  const before = { x_px: 1000, y_px: 1200, width_px: 800, height_px: 1200 };
  const after = zoomCrop(before, 500, image, ASPECT);
  assert.ok(Math.abs(after.x_px + after.width_px / 2 - 1400) < 1e-9);
  assert.ok(Math.abs(after.y_px + after.height_px / 2 - 1800) < 1e-9);
  assert.equal(after.width_px, 500);
});

test("Moving by pixels moves by exactly these pixels inside the image.", () => {
  const moved = moveCrop({ x_px: 100, y_px: 100, width_px: 800, height_px: 1200 }, 25, -40, IMAGES[0], ASPECT);
  assert.deepEqual([moved.x_px, moved.y_px], [125, 60]);
});

test("Zoom is 1 for the largest frame and ends at the smallest.", () => {
  const image = IMAGES[0];
  const most = largestWidth(image, ASPECT);
  assert.equal(zoomOf(zoomCrop({ x_px: 0, y_px: 0, width_px: 900, height_px: 1350 }, 1e9, image, ASPECT), image, ASPECT), 1);
  const least = zoomCrop({ x_px: 0, y_px: 0, width_px: 900, height_px: 1350 }, 0, image, ASPECT);
  assert.ok(Math.abs(least.width_px - most * SMALLEST_ZOOM) < 1e-9);
});
