// Text of both sides in the order of their starts; later text replaces interim text.

export interface Line {
  segment: string;
  who: "you" | "agent";
  text: string;
  final: boolean;
}

export class Transcript {
  readonly lines: Line[] = [];

  /** Sets the current text of a segment; a new segment starts a line. */
  set(segment: string, who: Line["who"], text: string, final: boolean): void {
    const line = this.lines.find((one) => one.segment === segment && one.who === who);
    if (!line) {
      if (text) this.lines.push({ segment, who, text, final });
      return;
    }
    line.final ||= final;
    if (text) line.text = text;
  }
}
