import { expect, test } from "vitest";
import { path } from "../src/sparkline";

test("values span the box from zero to the largest, and a missing one breaks the line", () => {
  expect(path([0, 1, null, 2, 2], 8, 10)).toBe("M0.0,9.0L2.0,5.0M6.0,1.0L8.0,1.0");
  expect(path([], 8, 10)).toBe("");
  expect(path([0, 0], 8, 10)).toBe("M0.0,9.0L8.0,9.0");
});
