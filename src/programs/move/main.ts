import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { answerTo } from '../../schema/answer.js';
import type { WholeMoveInfo } from '../../schema/move.js';
import type { JsonObject } from '../../schema/types.js';
import { connectMonitor } from '../../view/connect.js';
import { printable, printableJson } from '../../view/words.js';
import type { QmpClient } from '../../wire/qmp/client.js';
import { parseMonitorAddress } from '../arguments/monitor-address.js';
import { parseWords, type ScreenIo, standardIo, wholeNumber } from '../screen/arguments.js';
import { planText, progressLine } from './text.js';

export const MOVE_USAGE = `usage: livedisk move [OPTION]... SOCKET URI

Moves a running machine to another livedisk that waits for it (-incoming), with its disks (x-move). SOCKET is its QMP
(PATH, unix:PATH or HOST:PORT), URI where the other one waits (tcp:HOST:PORT or unix:PATH).

  --storage ADDRESS   the NBD server there (HOST:PORT or unix:PATH) with an empty disk for each of ours, exported for
                      writing under the device's id; without it both ends see the same images
  --disk DEVICE[=EXPORT]
                      of this disk (more than once; default: all that the guest writes)
  --speed BYTES       of each copy, at most so many a second
  --max-stop MS       the guest is not stopped while it would rest for longer
  --no-bitmaps        leave dirty bitmaps behind
  --tls-creds ID, --tls-hostname NAME
                      the copies go over TLS, with an object of the machine's
  --reconnect-delay S a link of a copy that breaks is made anew for so long (10)
  --dry-run           look at both ends, and say what would be copied and how long the guest would rest
  --json              print the plan, or how it ended, as QMP has it

Shows how far it is until it has ended: status 0 when the machine is there, 1 when it is still here. Ctrl-C gives the move up.
`;

const OPTIONS = {
  storage: { type: 'string' },
  disk: { type: 'string', multiple: true },
  speed: { type: 'string' },
  'max-stop': { type: 'string' },
  'no-bitmaps': { type: 'boolean' },
  'tls-creds': { type: 'string' },
  'tls-hostname': { type: 'string' },
  'reconnect-delay': { type: 'string' },
  'dry-run': { type: 'boolean' },
  json: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
} as const;

type Values = ReturnType<typeof parseWords<typeof OPTIONS>>['values'];

const POLL_MS = 500;
const ENDED: ReadonlySet<string> = new Set(['completed', 'failed', 'cancelled']);

/** `livedisk move`. `interrupted` is called with what gives it up. Errors: those of connecting, and of x-move. */
export async function moveMain(
  args: readonly string[],
  io: ScreenIo = standardIo(),
  onInterrupt: (cancel: () => void) => void = (cancel) => void process.on('SIGINT', cancel),
): Promise<number> {
  const { values, positionals } = parseWords(args, OPTIONS, MOVE_USAGE);
  if (values.help === true) {
    io.output.write(MOVE_USAGE);
    return 0;
  }
  const [socket, uri, ...more] = positionals;
  if (socket === undefined || uri === undefined || more.length > 0)
    throw new BlockError('invalid', 'move: a SOCKET and a URI are needed', { hint: MOVE_USAGE });
  const request = requestOf(uri, values);
  const client = await connectMonitor(io.host, parseMonitorAddress(socket), socket);
  try {
    if (values['dry-run'] !== true) return await move(client, request, values.json === true, io, onInterrupt);
    const plan = answerTo('x-move', await client.execute('x-move', { ...request, 'dry-run': true }));
    io.output.write(values.json === true ? `${printableJson(plan, 2)}\n` : planText(plan));
    return 0;
  } finally {
    client.close();
  }
}

/** Errors: invalid, naming the option. */
function requestOf(uri: string, values: Values): JsonObject {
  const number = (option: 'speed' | 'max-stop' | 'reconnect-delay'): number | undefined => {
    const text = values[option];
    return text === undefined ? undefined : wholeNumber(`--${option}`, text, 0);
  };
  const common = {
    uri,
    'max-stop': number('max-stop'),
    ...(values['no-bitmaps'] === true && { bitmaps: false }),
  };
  const { storage } = values;
  if (storage === undefined) {
    const ofStorage = (['disk', 'speed', 'tls-creds', 'tls-hostname', 'reconnect-delay'] as const).find(
      (key) => values[key] !== undefined,
    );
    if (ofStorage === undefined) return given(common);
    throw new BlockError(
      'invalid',
      `move: --${ofStorage} is of disks that are copied, which --storage asks for`,
    );
  }
  const address = parseMonitorAddress(storage);
  const server = address.type === 'inet' ? { ...address, port: String(address.port) } : address;
  const disks = values.disk?.map((text) => {
    const [device = '', name] = text.split('=');
    return given({ device, export: name });
  });
  return given({
    ...common,
    storage: given({
      ...{ server, disks, speed: number('speed'), 'reconnect-delay': number('reconnect-delay') },
      ...{ 'tls-creds': values['tls-creds'], 'tls-hostname': values['tls-hostname'] },
    }),
  });
}

/** Shows it until it has ended. Answers the exit status. */
async function move(
  client: QmpClient,
  request: JsonObject,
  isJson: boolean,
  { host, output }: ScreenIo,
  onInterrupt: (cancel: () => void) => void,
): Promise<number> {
  const isTerminal = output.isTTY === true && !isJson;
  onInterrupt(() => {
    client.execute('x-move-cancel').catch((error: unknown) => {
      output.write(
        `${isTerminal ? '\n' : ''}${printable(error instanceof Error ? error.message : String(error))}\n`,
      );
    });
  });
  await client.execute('x-move', request);
  for (;;) {
    const answer = answerTo('x-query-move', await client.execute('x-query-move'));
    const progress = answer['x-progress'];
    if (!progress) throw new BlockError('io', 'move: the machine does not know of the move any more');
    const { stage, error } = progress;
    if (isTerminal) output.write(`\r\x1b[K${progressLine(progress)}`);
    if (ENDED.has(stage)) {
      const text = isJson ? printableJson(answer, 2) : endText(progress, answer.owner);
      output.write(`${isTerminal ? '\r\x1b[K' : ''}${text}\n`);
      if (error !== undefined && isJson) process.stderr.write(`${printable(error)}\n`);
      return stage === 'completed' ? 0 : 1;
    }
    await new Promise<void>((resolve) => void host.clock.setTimer(POLL_MS, resolve));
  }
}

function endText({ stage, error, 'stop-ms': stopMs }: WholeMoveInfo, owner: string): string {
  if (stage === 'completed')
    return `moved${stopMs === undefined ? '' : `; the guest rested for ${stopMs} ms`}`;
  const what = stage === 'cancelled' ? 'given up' : `failed: ${printable(error ?? 'no reason was told')}`;
  if (owner === 'here') return `${what}; the machine is here`;
  return `${what}; who has the machine is said by x-query-move, and settled by x-move-claim (docs/MIGRATION.md)`;
}
