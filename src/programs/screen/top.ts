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

const ALTERNATE_SCREEN = '\x1b[?1049h\x1b[?25l';
const NORMAL_SCREEN = '\x1b[?25h\x1b[?1049l';

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
      output.write(
        `${drawTop(await watch.next(), { columns: output.columns ?? 80, isColoured }).join('\n')}\n`,
      );
    } else await follow(watch, isColoured);
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

function frame(top: TopView, isColoured: boolean): string[] {
  return drawTop(top, { columns: process.stdout.columns ?? 80, isColoured });
}

/** A look at the server at each interval; the first one is at once. */
class Watch {
  readonly #host: Host;
  readonly #client: QmpClient;
  readonly #intervalMs: number;
  readonly #rates = new Rates();
  #nextMs: number | undefined;
  #stopped = deferred();
  isStopped = false;

  constructor(host: Host, client: QmpClient, intervalMs: number) {
    this.#host = host;
    this.#client = client;
    this.#intervalMs = intervalMs;
  }

  async next(): Promise<TopView> {
    const { clock } = this.#host;
    const waitMs = (this.#nextMs ?? clock.nowMs()) - clock.nowMs();
    if (waitMs > 0) {
      const timer = clock.setTimer(waitMs, () => this.#stopped.resolve());
      await Promise.race([this.#stopped.promise, this.#client.closed]);
      timer.cancel();
      if (!this.isStopped) this.#stopped = deferred();
    }
    const view = await lookAt(this.#client);
    const now = clock.nowMs();
    this.#nextMs = now + this.#intervalMs;
    return this.#rates.look(view, now);
  }

  stop(): void {
    this.isStopped = true;
    this.#stopped.resolve();
  }
}

/** Frames until somebody ends it; where lines cannot be rewritten, one below the other. */
async function follow(watch: Watch, isColoured: boolean): Promise<void> {
  const { stdin, stdout } = process;
  const stop = (): void => watch.stop();
  const onKey = (key: Buffer): void => {
    if (/^[qQ\x03\x1b]$/.test(key.toString('latin1'))) stop();
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, stop);
  const isScreen = stdout.isTTY;
  if (isScreen) stdout.write(ALTERNATE_SCREEN);
  if (isScreen && stdin.isTTY) stdin.setRawMode(true).on('data', onKey);
  try {
    while (!watch.isStopped && stdout.writable) {
      const lines = frame(await watch.next(), isColoured);
      if (watch.isStopped) break;
      if (isScreen) stdout.write(`\x1b[H${lines.slice(0, stdout.rows).join('\x1b[K\n')}\x1b[J`);
      else stdout.write(`${lines.join('\n')}\n\n`);
    }
  } finally {
    if (isScreen) stdout.write(NORMAL_SCREEN);
    if (isScreen && stdin.isTTY) stdin.setRawMode(false).off('data', onKey).pause();
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.removeListener(signal, stop);
  }
}
