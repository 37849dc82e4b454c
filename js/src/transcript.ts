// Both sides' words in the order in which they began; interim text is replaced by what follows.

export interface Line {
  segment: string;
  who: "you" | "agent";
  text: string;
  final: boolean;
}

export class Transcript {
  readonly lines: Line[] = [];

  /** Sets the text of a segment as it is known now; a segment that is new begins a line. */
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
