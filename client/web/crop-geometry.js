/** Moving and zooming a crop frame inside an image: pure arithmetic in pixels of the upright image. */

/** @typedef {import("./api.js").Crop} Crop @typedef {{width_px: number, height_px: number}} ImageArea */

/** Smallest frame, as a share of the largest one that fits. */
export const SMALLEST_ZOOM = 0.15;

/**
 * @param {ImageArea} image
 * @param {number} aspect Width over height of the frame.
 * @returns {number} Width of the largest frame that fits, in pixels.
 */
export const largestWidth = (image, aspect) => Math.min(image.width_px, image.height_px * aspect);

/**
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
export const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));

/**
 * @param {Crop} crop Any frame.
 * @param {ImageArea} image
 * @param {number} aspect
 * @returns {Crop} The nearest frame of this aspect that lies inside the image, with the same centre where possible.
 */
export function fitCrop(crop, image, aspect) {
  const most = largestWidth(image, aspect);
  const width_px = clamp(crop.width_px, most * SMALLEST_ZOOM, most);
  const height_px = width_px / aspect;
  const x_px = crop.x_px + (crop.width_px - width_px) / 2;
  const y_px = crop.y_px + (crop.height_px - height_px) / 2;
  return {
    x_px: clamp(x_px, 0, image.width_px - width_px),
    y_px: clamp(y_px, 0, image.height_px - height_px),
    width_px,
    height_px,
  };
}

/** @param {Crop} crop @param {number} dx_px @param {number} dy_px @param {ImageArea} image @param {number} aspect */
export const moveCrop = (crop, dx_px, dy_px, image, aspect) =>
  fitCrop({ ...crop, x_px: crop.x_px + dx_px, y_px: crop.y_px + dy_px }, image, aspect);

/**
 * Changes the frame's width and keeps its centre.
 * @param {Crop} crop
 * @param {number} width_px
 * @param {ImageArea} image
 * @param {number} aspect
 */
export function zoomCrop(crop, width_px, image, aspect) {
  const most = largestWidth(image, aspect);
  const width = clamp(width_px, most * SMALLEST_ZOOM, most);
  const x_px = crop.x_px + (crop.width_px - width) / 2;
  const y_px = crop.y_px + (crop.height_px - width / aspect) / 2;
  return fitCrop({ x_px, y_px, width_px: width, height_px: width / aspect }, image, aspect);
}

/** @param {Crop} crop @param {ImageArea} image @param {number} aspect @returns {number} 1: the largest frame; larger: closer. */
export const zoomOf = (crop, image, aspect) => largestWidth(image, aspect) / crop.width_px;
