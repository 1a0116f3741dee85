import { StringDecoder } from 'node:string_decoder';
import type { Engine } from '../../monitor/engine.js';
import { runHmp } from '../../monitor/hmp.js';
import { VERSION } from '../../wire/qmp/version.js';

const PROMPT = '(qemu) ';

/** What is typed beyond it is lost, as in QEMU. */
const MAX_LINE_CHARS = 4095;

/** The human monitor on a stream of text: a banner, a prompt, a line, what it prints, a prompt. */
export class HumanMonitor {
  readonly #engine: Engine;
  readonly #write: (text: string) => void;
  readonly #decoder = new StringDecoder('utf8');
  #text = '';
  #working: Promise<void> = Promise.resolve();

  constructor(engine: Engine, write: (text: string) => void) {
    this.#engine = engine;
    this.#write = write;
    const { major, minor, micro } = VERSION.qemu;
    write(`QEMU ${major}.${minor}.${micro} monitor - type 'help' for more information\n${PROMPT}`);
  }

  /** Input as it comes, in any pieces. */
  push(chunk: Buffer): void {
    this.#text += this.#decoder.write(chunk);
    for (let end = this.#text.indexOf('\n'); end >= 0; end = this.#text.indexOf('\n')) {
      const line = this.#text.slice(0, end).replace(/\r$/, '');
      this.#text = this.#text.slice(end + 1);
      this.#working = this.#working.then(() => this.#run(line)).catch(this.#engine.hub.onUnexpectedError);
    }
    if (this.#text.length > MAX_LINE_CHARS) this.#text = this.#text.slice(0, MAX_LINE_CHARS);
  }

  async #run(line: string): Promise<void> {
    this.#write((await runHmp(this.#engine, line)) + PROMPT);
  }
}
