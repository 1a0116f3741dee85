import { BlockError, errnoError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import { getopt } from '../io/getopt.js';

const OPTIONS = [
  { short: 'c', long: 'connect', takesValue: true },
  { short: 'd', long: 'disconnect', takesValue: false },
];

/** What -c and -d are answered with: there is no device, or livedisk does not make it one of its own. */
export async function refuseKernelDevice(
  words: readonly string[],
  host: Host,
): Promise<BlockError | undefined> {
  const { options, operands } = getopt(
    words.filter((word) => /^(-c|-d|--connect|--disconnect|\/dev\/)/.test(word)),
    OPTIONS,
  );
  const connect = options.find(({ name }) => name === 'connect');
  const isDisconnect = options.some(({ name }) => name === 'disconnect');
  const device = connect?.value ?? (isDisconnect ? operands[0] : undefined);
  if (device === undefined) return undefined;
  const what = connect ? `Failed to open ${device}` : `Cannot open ${device}`;
  if ((await host.files.stat(device)) === undefined) return errnoError('ENOENT', what);
  const text = `${what}: the kernel's NBD devices are not supported by livedisk; use nbd-client with a socket (-k)`;
  return new BlockError('unsupported', text);
}
