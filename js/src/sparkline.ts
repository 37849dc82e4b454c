// A line of the last values, from zero to the largest; gaps where there was no value.

const SVG = "http://www.w3.org/2000/svg";

/** The path of the values over a box; empty where there is nothing to draw. */
export function path(values: (number | null)[], width: number, height: number): string {
  const top = Math.max(...values.map((value) => value ?? 0), 0);
  const step = width / Math.max(1, values.length - 1);
  let pen = "M";
  let drawn = "";
  values.forEach((value, at) => {
    if (value === null) {
      pen = "M";
      return;
    }
    const y = top > 0 ? height - (value / top) * (height - 2) - 1 : height - 1;
    drawn += `${pen}${(at * step).toFixed(1)},${y.toFixed(1)}`;
    pen = "L";
  });
  return drawn;
}

export function sparkline(values: (number | null)[], width: number, height: number): SVGElement {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path(values, width, height));
  svg.append(line);
  return svg;
}
