import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect } from 'node:util';
import type { HostSocket } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';
import { RealClock } from '../../src/host/real-clock.js';
import { SeededRandom } from '../../src/host/simulated-random.js';
import { CommandRegistry } from '../../src/wire/qmp/registry.js';
import { QmpHub } from '../../src/wire/qmp/hub.js';
import { QmpSession } from '../../src/wire/qmp/session.js';
import { PairedSocket } from '../kit/socket-pair.js';
import { spawnQemu } from './qemu-monitor.js';

/** A connection on which bytes are sent and lines are read. */
class RawConnection {
  readonly #socket: HostSocket;
  #text = '';
  #lines: string[] = [];
  #wake: () => void = () => undefined;

  constructor(socket: HostSocket) {
    this.#socket = socket;
    socket.start({
      onData: (chunk) => {
        this.#text += chunk.toString('latin1');
        const lines = this.#text.split('\r\n');
        this.#text = lines.pop() ?? '';
        this.#lines.push(...lines);
        this.#wake();
      },
      onClose: () => this.#wake(),
    });
  }

  async line(): Promise<unknown> {
    while (this.#lines.length === 0) await new Promise<void>((resolve) => (this.#wake = resolve));
    // How many replacement characters stand for bytes that are no UTF-8 differs between decoders.
    return JSON.parse((this.#lines.shift() ?? '').replaceAll(/(\\uFFF[DF])+/g, '\\uFFFD'));
  }

  async negotiate(): Promise<void> {
    await this.line();
    this.#socket.write(Buffer.from('{"execute": "qmp_capabilities"}'));
    await this.line();
  }

  /** What is answered to `input` by whoever answers an unknown command after it. */
  async answers(input: string, serial: number): Promise<unknown[]> {
    // Ends whatever the input has left open: a string, a word, brackets.
    const end = `\n@"\n@'\n${']}'.repeat(40)}\n{"execute": "none", "id": "end ${serial}"}\n`;
    this.#socket.write(Buffer.from(input + end, 'latin1'));
    const answers: unknown[] = [];
    for (;;) {
      const answer = await this.line();
      if ((answer as { id?: unknown }).id === `end ${serial}`) return answers;
      answers.push(answer);
    }
  }
}

const WORDS = [
  ...['{"execute":"none"}', '{"execute":"none","id":', '{"execute":', '"none"', '{', '}', '[', ']', ',', ':'],
  ...[
    '"',
    "'",
    '\\',
    '\\u',
    '\\ud83d',
    '\\ude00',
    '\\u0000',
    '\\n',
    '\\q',
    '\n',
    '\t',
    '\r',
    ' ',
    '1',
    '0',
    '-',
    '.5',
  ],
  ...[
    'e',
    'E+1',
    '1.5e3',
    '12345678901234567890',
    'true',
    'false',
    'null',
    'nul',
    'T',
    '%d',
    '@',
    '\x00',
    '\x1f',
    '\x7f',
  ],
  ...[
    '\xc3\xa9',
    '\xc3',
    '\xff',
    '\xfe',
    '\xf0\x9f\x98\x80',
    '\xed\xa0\x80',
    '\xef\xbf\xbf',
    '"x"',
    '"a":1',
    '[]',
    '{}',
  ],
  ...[
    '{"id":1}',
    '{"execute":1}',
    '{"execute":"none","arguments":[]}',
    '{"execute":"none","arguments":{"a":1}}',
  ],
];

test('any input is answered as QEMU answers it', async (context) => {
  const path = await spawnQemu(context);
  if (path === undefined) return;
  const socket = await createRealHost().net.connect({ type: 'unix', path });
  context.after(() => socket.destroy());
  const theirs = new RawConnection(socket);
  await theirs.negotiate();
  const [end, other] = PairedSocket.pair((chunk) => Math.min(chunk.length, 5));
  new QmpSession(new QmpHub(new CommandRegistry(), new RealClock()), other);
  const ours = new RawConnection(end);
  await ours.negotiate();
  for (let seed = 0; seed < 1500; seed++) {
    const random = new SeededRandom(seed);
    let input = '';
    for (let count = 1 + random.below(12); count > 0; count--)
      input += WORDS[random.below(WORDS.length)] ?? '';
    const expected = await theirs.answers(input, seed);
    assert.deepEqual(await ours.answers(input, seed), expected, `seed ${seed}: ${inspect(input)}`);
  }
});
