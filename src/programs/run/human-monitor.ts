import { StringDecoder } from 'node:string_decoder';
import { BlockError } from '../../base/error.js';
import { completions, runHmp } from '../../monitor/hmp.js';
import type { Engine } from '../../monitor/engine.js';
import { VERSION } from '../../wire/qmp/version.js';
import { LineEditor } from './line-editor.js';

const PROMPT = '(qemu) ';

/** The human monitor on a stream of text: a banner, a prompt, a line, what it prints, a prompt. */
export class HumanMonitor {
  readonly #engine: Engine;
  readonly #write: (text: string) => void;
  readonly #decoder = new StringDecoder('utf8');
  readonly #editor: LineEditor;

  constructor(engine: Engine, write: (text: string) => void) {
    this.#engine = engine;
    this.#write = write;
    this.#editor = new LineEditor(PROMPT, {
      write,
      line: (text) => this.#run(text),
      complete: (text) => completions(engine, text),
    });
    // Nothing is asked for any more, as in QEMU.
    void engine.quitting.promise.then(() => this.#editor.end());
    const { major, minor, micro } = VERSION.qemu;
    write(`QEMU ${major}.${minor}.${micro} monitor - type 'help' for more information\n`);
    this.#editor.begin();
  }

  /** Input as it comes, in any pieces. */
  push(chunk: Buffer): void {
    this.#editor.push(this.#decoder.write(chunk));
  }

  /** The prompt, and the line that is being typed. */
  showAgain(): void {
    this.#editor.showAgain();
  }

  async #run(line: string): Promise<void> {
    try {
      const { hub } = this.#engine;
      const text = await hub.inBand(async () => {
        const printed = await runHmp(this.#engine, line);
        await hub.onDone('human-monitor-command');
        return printed;
      });
      this.#write(text);
    } catch (error) {
      // What is typed after `quit` is not answered.
      if (error instanceof BlockError && error.kind === 'closed') return;
      this.#engine.hub.onUnexpectedError(error);
    }
  }
}
