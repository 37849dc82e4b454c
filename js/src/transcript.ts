// Text of both sides in the order of their starts; later text replaces interim text.

export interface Line {
  segment: string;
  who: "you" | "agent";
  text: string;
  final: boolean;
}

export class Transcript {
  readonly lines: Line[] = [];
  private messages = 0;

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

  /**
   * A message that the agent has spoken gets a line if it has none: the server drops a text stream
   * that begins before this page's data channel is open, so the greeting's may never come.
   */
  spoken(segment: string, text: string): void {
    if (!text) return;
    this.messages += 1;
    if (this.lines.filter((line) => line.who === "agent").length < this.messages)
      this.lines.push({ segment, who: "agent", text, final: true });
  }
}
