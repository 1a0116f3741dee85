import { BlockError } from '../../base/error.js';

/** The first descriptor that a service manager passes (sd_listen_fds(3)). */
const FIRST_FD = 3;

/**
 * The listening socket that was passed to this process, if any; the variables that tell of it are taken out, so that no
 * child takes it for its own. Errors: invalid, in QEMU's words.
 */
export function passedSocket(environment: NodeJS.ProcessEnv, pid: number): number | undefined {
  const { LISTEN_PID: forWhom, LISTEN_FDS: count } = environment;
  if (forWhom !== String(pid) || count === undefined || !/^\d+$/.test(count)) return undefined;
  delete environment['LISTEN_PID'];
  delete environment['LISTEN_FDS'];
  if (Number(count) === 0) return undefined;
  if (Number(count) > 1)
    throw new BlockError('invalid', 'qemu-nbd does not support socket activation with LISTEN_FDS > 1');
  return FIRST_FD;
}

/** What says where to listen, or to go into the background, is a contradiction then. Errors: invalid. */
export function checkActivated(given: ReadonlySet<string>): void {
  const texts: Array<[name: string, text: string]> = [
    ['socket', "Unix socket can't be set when using socket activation"],
    ['bind', "The interface can't be set when using socket activation"],
    ['port', "TCP port number can't be set when using socket activation"],
    ['fork', '--fork is not supported with socket activation'],
  ];
  for (const [name, text] of texts) if (given.has(name)) throw new BlockError('invalid', text);
}
