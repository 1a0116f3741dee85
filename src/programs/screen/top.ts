import { BlockError } from '../../base/error.js';
import { deferred } from '../../base/async.js';
import type { Host } from '../../host/host.js';
import { connectMonitor, lookAt } from '../../view/connect.js';
import { Rates } from '../../view/rates.js';
import { drawTop, type TopView } from '../../view/top.js';
import type { QmpClient } from '../../wire/qmp/client.js';
import { parseMonitorAddress } from '../arguments/monitor-address.js';
import { parseWords, SCREEN_OPTIONS, type ScreenIo, standardIo, wantsColour } from './arguments.js';

export const TOP_USAGE = `usage: livedisk top [OPTION]... SOCKET

Shows what the disks and jobs of a running livedisk, qemu-storage-daemon or QEMU do, until q or Ctrl-C. It keeps the
server's QMP socket (PATH, unix:PATH or HOST:PORT) meanwhile.

  --once           one frame, of one interval
  --interval S     seconds between two looks (default 1)
  --color=WHEN     always, never or auto
`;

const OPTIONS = {
  once: { type: 'boolean' },
  interval: { type: 'string' },
  ...SCREEN_OPTIONS,
} as const;

// Characters that are two cells wide are counted as one: what is too long then is cut off, not broken in two.
const ALTERNATE_SCREEN = '\x1b[?1049h\x1b[?25l\x1b[?7l';
/** A server that hangs is told of then. */
const SILENT_MS = 5000;

const NORMAL_SCREEN = '\x1b[?7h\x1b[?25h\x1b[?1049l';

/** `livedisk top`. Errors: those of connecting; closed when the server goes away. */
export async function topMain(args: readonly string[], io: ScreenIo = standardIo()): Promise<number> {
  const { host, output } = io;
  const { values, positionals } = parseWords(args, OPTIONS, TOP_USAGE);
  if (values.help === true) {
    output.write(TOP_USAGE);
    return 0;
  }
  const [socket, ...more] = positionals;
  if (socket === undefined || more.length > 0)
    throw new BlockError('invalid', 'top: one SOCKET is needed', { hint: TOP_USAGE });
  const intervalMs = 1000 * intervalSeconds(values.interval ?? '1');
  const isColoured = wantsColour(values.color, output);
  const client = await connectMonitor(host, parseMonitorAddress(socket), socket);
  try {
    const watch = new Watch(host, client, intervalMs);
    if (values.once === true) {
      await watch.next();
      const frame = drawTop(await watch.next(), { columns: output.columns ?? 80, isColoured });
      output.write(`${frame.join('\n')}\n`);
    } else await follow(watch, socket, isColoured);
  } finally {
    client.close();
  }
  return 0;
}

function intervalSeconds(text: string): number {
  const seconds = Number(text);
  if (text.trim() !== '' && seconds >= 0.1 && seconds <= 3600) return seconds;
  throw new BlockError('invalid', `--interval needs 0.1 to 3600 seconds, not '${text}'`);
}

/** A look at the server at each interval; the first one is at once. */
class Watch {
  readonly #host: Host;
  readonly #client: QmpClient;
  readonly #intervalMs: number;
  readonly #rates = new Rates();
  #nextMs: number | undefined;
  /** Ends what is waited for; each wait has its own, so that nothing of it is kept. */
  #wake: () => void = () => undefined;
  isStopped = false;
  #isGone = false;

  constructor(host: Host, client: QmpClient, intervalMs: number) {
    this.#host = host;
    this.#client = client;
    this.#intervalMs = intervalMs;
    void client.closed.then(() => {
      this.#isGone = true;
      this.#wake();
    });
  }

  /**
   * Undefined once it was stopped, whether or not the server answers; `onSilent` is called when it has not for a while. Errors:
   * those of the connection.
   */
  async next(onSilent: () => void = () => undefined): Promise<TopView | undefined> {
    const { clock } = this.#host;
    await this.#pause((this.#nextMs ?? clock.nowMs()) - clock.nowMs());
    if (this.isStopped) return undefined;
    const silence = clock.setTimer(SILENT_MS, onSilent);
    const stopped = deferred<undefined>();
    this.#wake = () => this.isStopped && stopped.resolve(undefined);
    const view = await Promise.race([lookAt(this.#client), stopped.promise]).finally(() => silence.cancel());
    if (!view || this.isStopped) return undefined;
    const now = clock.nowMs();
    this.#nextMs = now + this.#intervalMs;
    return this.#rates.look(view, now);
  }

  async #pause(ms: number): Promise<void> {
    if (ms <= 0) return;
    const over = deferred();
    const timer = this.#host.clock.setTimer(ms, () => over.resolve());
    this.#wake = () => over.resolve();
    if (!this.#isGone) await over.promise;
    timer.cancel();
  }

  stop(): void {
    this.isStopped = true;
    this.#wake();
  }
}

/** Frames until somebody ends it; where lines cannot be rewritten, one below the other. */
async function follow(watch: Watch, name: string, isColoured: boolean): Promise<void> {
  const { stdin, stdout } = process;
  const stop = (): void => watch.stop();
  const onKey = (key: Buffer): void => {
    // Several that were pressed meanwhile come as one; what a key with a name sends begins with Escape, and is longer.
    const text = key.toString('latin1');
    if (text === '\x1b' || (!text.startsWith('\x1b') && /[qQ\x03]/.test(text))) stop();
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, stop);
  const isScreen = stdout.isTTY;
  const show = (lines: readonly string[]): void => {
    if (isScreen) stdout.write(`\x1b[H${lines.slice(0, stdout.rows).join('\x1b[K\n')}\x1b[K\x1b[J`);
    else stdout.write(`${lines.join('\n')}\n\n`);
  };
  if (isScreen) stdout.write(ALTERNATE_SCREEN);
  if (isScreen && stdin.isTTY) stdin.setRawMode(true).on('data', onKey);
  let last: TopView | undefined;
  try {
    while (!watch.isStopped && stdout.writable) {
      const draw = (top: TopView | undefined, note?: string): void =>
        show(drawTop(top, { columns: stdout.columns ?? 80, isColoured, note }));
      const next = await watch.next(() => {
        const what = last ? '; what is below is old' : '';
        draw(last, `${name} has not answered for ${SILENT_MS / 1000} s${what}`);
      });
      if (!next) break;
      last = next;
      draw(next);
    }
  } finally {
    if (isScreen) stdout.write(NORMAL_SCREEN);
    if (isScreen && stdin.isTTY) stdin.setRawMode(false).off('data', onKey).pause();
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.removeListener(signal, stop);
  }
}
