/** What is typed beyond it is lost, as in QEMU. */
const MAX_LINE_CHARS = 4095;

const PLAIN = /^[^\0-\x1f\x7f]+/;

/** Lines that can be called back. */
const MAX_HISTORY = 64;

export interface EditorUser {
  write(text: string): void;
  /** A whole line. The next input waits until it is done. */
  line(text: string): Promise<void>;
  /** What a beginning of a line may go on as, whole words. */
  complete(text: string): string[];
}

const KEYS: Readonly<Record<string, string>> = {
  '\x01': 'home',
  '\x02': 'left',
  '\x04': 'delete',
  '\x05': 'end',
  '\x06': 'right',
  '\b': 'backspace',
  '\t': 'tab',
  '\v': 'kill',
  '\n': 'enter',
  '\r': 'enter',
  '\x0e': 'down',
  '\x10': 'up',
  '\x15': 'clear',
  '\x17': 'word',
  '\x7f': 'backspace',
};
const SEQUENCES: Readonly<Record<string, string>> = {
  A: 'up',
  B: 'down',
  C: 'right',
  D: 'left',
  F: 'end',
  H: 'home',
  '1~': 'home',
  '3~': 'delete',
  '4~': 'end',
};

/**
 * A line as it is typed, with what a terminal shows of it: keys move, delete, complete and call lines back. Programs that
 * talk to QEMU's human monitor see the same.
 */
export class LineEditor {
  readonly #prompt: string;
  #hasEnded = false;
  readonly #user: EditorUser;
  #text: string[] = [];
  #cursor = 0;
  #shownText = '';
  #shownCursor = 0;
  #escape = '';
  #history: string[] = [];
  #place = 0;
  #waiting = '';
  #isWorking = false;

  constructor(prompt: string, user: EditorUser) {
    this.#prompt = prompt;
    this.#user = user;
  }

  /** Shows the prompt. */
  begin(): void {
    this.#text = [];
    this.#cursor = this.#shownCursor = 0;
    this.#shownText = '';
    this.#place = this.#history.length;
    this.#user.write(this.#prompt);
  }

  /** Shows the prompt and what has been typed, after something else was shown. */
  showAgain(): void {
    this.#user.write(this.#prompt);
    this.#shownText = '';
    this.#shownCursor = 0;
    if (this.#text.length > 0) this.#show();
  }

  /** No prompt comes any more, and what is typed is not looked at. */
  end(): void {
    this.#hasEnded = true;
  }

  push(text: string): void {
    this.#waiting += text;
    if (!this.#isWorking) void this.#work();
  }

  async #work(): Promise<void> {
    this.#isWorking = true;
    while (this.#waiting !== '') {
      // Plain text is shown in one go, keys one by one.
      const plain = this.#escape === '' ? PLAIN.exec(this.#waiting) : null;
      const piece = plain?.[0] ?? this.#waiting.charAt(0);
      this.#waiting = this.#waiting.slice(piece.length);
      const line = this.#take(piece);
      if (line === undefined) continue;
      await this.#user.line(line);
      if (this.#hasEnded) return;
      this.begin();
    }
    this.#isWorking = false;
  }

  /** Answers a line that has ended. */
  #take(char: string): string | undefined {
    if (this.#escape !== '' || char === '\x1b') return this.#takeEscape(char);
    const key = KEYS[char];
    if (key !== undefined) return this.#press(key);
    if (char >= ' ') this.#insert([...char]);
    return undefined;
  }

  #takeEscape(char: string): undefined {
    this.#escape += char;
    if (this.#escape === '\x1b' || this.#escape === '\x1b[' || this.#escape === '\x1bO') return;
    const sequence = this.#escape.slice(2);
    if (this.#escape.length > 2 && /^\d+$/.test(sequence) && sequence.length < 4) return;
    this.#escape = '';
    const key = SEQUENCES[sequence];
    if (key !== undefined) this.#press(key);
  }

  #press(key: string): string | undefined {
    const length = this.#text.length;
    switch (key) {
      case 'enter':
        return this.#enter();
      case 'left':
        return this.#moveTo(Math.max(0, this.#cursor - 1));
      case 'right':
        return this.#moveTo(Math.min(length, this.#cursor + 1));
      case 'home':
        return this.#moveTo(0);
      case 'end':
        return this.#moveTo(length);
      case 'backspace':
        return this.#cut(Math.max(0, this.#cursor - 1), this.#cursor);
      case 'delete':
        return this.#cut(this.#cursor, this.#cursor + 1);
      case 'kill':
        return this.#cut(this.#cursor, length);
      case 'clear':
        return this.#cut(0, this.#cursor);
      case 'word':
        return this.#cut(this.#wordStart(), this.#cursor);
      case 'up':
        return this.#recall(this.#place - 1);
      case 'down':
        return this.#recall(this.#place + 1);
      default:
        return this.#complete();
    }
  }

  #enter(): string {
    this.#user.write('\n');
    const line = this.#text.join('');
    if (line !== '') {
      this.#history = [...this.#history.filter((older) => older !== line), line].slice(-MAX_HISTORY);
    }
    return line;
  }

  #insert(chars: readonly string[]): undefined {
    const room = MAX_LINE_CHARS - this.#text.length;
    const taken = chars.slice(0, Math.max(0, room));
    if (taken.length === 0) return;
    this.#text.splice(this.#cursor, 0, ...taken);
    this.#cursor += taken.length;
    this.#show();
  }

  #moveTo(cursor: number): undefined {
    this.#cursor = cursor;
    this.#show();
  }

  #cut(from: number, to: number): undefined {
    this.#text.splice(from, to - from);
    this.#cursor = from;
    this.#show();
  }

  #wordStart(): number {
    let at = this.#cursor;
    while (at > 0 && this.#text[at - 1] === ' ') at--;
    while (at > 0 && this.#text[at - 1] !== ' ') at--;
    return at;
  }

  #recall(place: number): undefined {
    if (place < 0 || place > this.#history.length) return;
    this.#place = place;
    this.#text = [...(this.#history[place] ?? '')];
    this.#cursor = this.#text.length;
    this.#show();
  }

  /** What all candidates have in common is put in; where that is nothing they are listed. */
  #complete(): undefined {
    const before = this.#text.slice(0, this.#cursor).join('');
    const word = /\S*$/.exec(before)?.[0] ?? '';
    const found = this.#user.complete(before);
    const common = commonStart(found);
    if (found.length === 1) this.#insert([...`${common.slice(word.length)} `]);
    else if (common.length > word.length) this.#insert([...common.slice(word.length)]);
    else if (found.length > 1) {
      const width = Math.max(...found.map(({ length }) => length)) + 3;
      const columns = Math.max(1, Math.floor(80 / width));
      const rows = Math.ceil(found.length / columns);
      const list = Array.from({ length: rows }, (_, row) => {
        return found
          .slice(row * columns, (row + 1) * columns)
          .map((name) => name.padEnd(width))
          .join('');
      });
      this.#user.write(`\n${list.join('\n')}\n${this.#prompt}`);
      this.#shownText = '';
      this.#shownCursor = 0;
      this.#show();
    }
  }

  #show(): void {
    const text = this.#text.join('');
    const { length } = this.#text;
    if (text === this.#shownText) {
      const step = this.#cursor - this.#shownCursor;
      this.#user.write((step > 0 ? '\x1b[C' : '\x1b[D').repeat(Math.abs(step)));
    } else {
      this.#user.write(
        `${'\x1b[D'.repeat(this.#shownCursor)}${text}\x1b[K${'\x1b[D'.repeat(length - this.#cursor)}`,
      );
    }
    this.#shownText = text;
    this.#shownCursor = this.#cursor;
  }
}

function commonStart([first = '', ...rest]: readonly string[]): string {
  let length = first.length;
  for (const text of rest) while (!text.startsWith(first.slice(0, length))) length--;
  return first.slice(0, length);
}
