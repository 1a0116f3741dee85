import { BlockError } from '../base/error.js';
import type { Host, SocketAddress } from '../host/host.js';
import { QmpClient } from '../wire/qmp/client.js';
import { type Answers, readAnswers } from './answers.js';
import { buildView } from './build.js';
import type { View } from './model.js';

/** A monitor of QEMU's that serves somebody else takes a second connection and says nothing. */
const GREETING_MS = 2000;

/**
 * A client for pictures. `name` is what the address is called in errors: kind busy when nothing greets within 2 s, and
 * those of connecting.
 */
export async function connectMonitor(host: Host, address: SocketAddress, name: string): Promise<QmpClient> {
  try {
    return await QmpClient.connect(host, address, { timeoutMs: GREETING_MS });
  } catch (error) {
    // Who waits for the same server before us may fill its queue.
    const isQueueFull = error instanceof BlockError && error.errno === 'EAGAIN';
    const isMute =
      error instanceof BlockError && error.kind === 'timeout' && !error.message.startsWith('no answer');
    if (!isMute && !isQueueFull) throw (await noSocket(host, address, name)) ?? error;
    const hint = 'A QMP socket of QEMU serves one client at a time; give the server another one.';
    throw new BlockError('busy', `${name} is in use: no QMP greeting within ${GREETING_MS / 1000} s`, {
      cause: error,
      hint,
    });
  }
}

/** What is told of a name that is an image's, which no server answers at. */
async function noSocket(host: Host, address: SocketAddress, name: string): Promise<BlockError | undefined> {
  if (address.type !== 'unix') return undefined;
  const stat = await host.files.stat(address.path);
  if (!stat || stat.isSpecial === 'socket') return undefined;
  const hint = `An image is drawn by "livedisk show"; of a server its QMP socket is needed.`;
  return new BlockError('invalid', `${name} is no socket`, { hint });
}

const lastAnswers = new WeakMap<QmpClient, Answers>();

/** What there is now. Errors: those of the connection, and busy (readAnswers). */
export async function lookAt(client: QmpClient): Promise<View> {
  const last = lastAnswers.get(client);
  const answers = await readAnswers((command, args) => client.execute(command, args), { last });
  lastAnswers.set(client, answers);
  return buildView(answers);
}
