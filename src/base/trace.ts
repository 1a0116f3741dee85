import { BlockError } from './error.js';
import { matchesGlob } from './glob.js';

/**
 * Trace points: places that say what happens there while somebody wants to know. A point that is off costs a look at one
 * member: whoever has something to say looks first, and makes the text only then.
 */
export class TracePoint {
  readonly name: string;
  isOn = false;
  readonly #trace: Trace;

  constructor(name: string, trace: Trace) {
    this.name = name;
    this.#trace = trace;
  }

  /** Only where it is on: `if (point.isOn) point.say(...)`. */
  say(text: string): void {
    this.#trace.output.write(`${this.name} ${text}\n`);
  }
}

/** Where lines go. */
export interface TraceOutput {
  /** A whole line, now. What cannot be written is dropped. */
  write(line: string): void;
  /** From now on into that file, which is made anew. Errors: io, in QEMU's words. */
  toFile(path: string): void;
  /** Whether the process and the time stand before each line. */
  hasTimes: boolean;
}

/** Of a machine on which nobody looks. */
export const NO_TRACE_OUTPUT: TraceOutput = {
  write: () => undefined,
  toFile: (path) => {
    throw new BlockError('unsupported', `Error opening logfile ${path}: Operation not supported`);
  },
  hasTimes: false,
};

/** All points of a program, off at first, and where their lines go. */
export class Trace {
  readonly blockRequest = new TracePoint('block_request', this);
  readonly blockRequestDone = new TracePoint('block_request_done', this);
  readonly blockRequestFailed = new TracePoint('block_request_failed', this);
  readonly jobState = new TracePoint('job_state_transition', this);
  readonly nbdNegotiateOption = new TracePoint('nbd_negotiate_option', this);
  readonly nbdNegotiated = new TracePoint('nbd_negotiated', this);
  readonly nbdRefused = new TracePoint('nbd_refused', this);
  readonly nbdRequest = new TracePoint('nbd_request', this);
  readonly qcow2Reserve = new TracePoint('qcow2_reserve', this);
  readonly qmpCommand = new TracePoint('handle_qmp_command', this);
  readonly qmpEvent = new TracePoint('monitor_qmp_event', this);
  readonly hmpCommand = new TracePoint('handle_hmp_command', this);
  readonly output: TraceOutput;

  constructor(output: TraceOutput) {
    this.output = output;
  }

  get points(): TracePoint[] {
    return Object.values(this).filter((value): value is TracePoint => value instanceof TracePoint);
  }

  find(name: string): TracePoint | undefined {
    return this.points.find((point) => point.name === name);
  }

  /** The points that a pattern is about: `*` stands for anything, `?` for one character. */
  matching(pattern: string): TracePoint[] {
    return this.points.filter(({ name }) => matchesGlob(pattern, name));
  }

  /**
   * Switches what a line of --trace, or of its file, is about: a name or a pattern, behind `-` to be off. False for the name of
   * no point; a pattern may be about none.
   */
  switch(line: string): boolean {
    const isOn = !line.startsWith('-');
    const pattern = isOn ? line : line.slice(1);
    const found = this.matching(pattern);
    for (const point of found) point.isOn = isOn;
    return found.length > 0 || pattern.includes('*');
  }
}
