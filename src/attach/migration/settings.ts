import type { CancelSignal } from '../../base/cancel-signal.js';
import type { Host } from '../../host/host.js';
import type { ByteStream } from '../../wire/migration/byte-stream.js';
import { Capabilities } from './capabilities.js';
import { Parameters } from './parameters.js';

/** What both ends of a move go by. */
export interface MoveSettings {
  readonly host: Host;
  readonly capabilities: Capabilities;
  readonly parameters: Parameters;
  readonly emit: (event: string, data: { [key: string]: string | number }) => void;
  readonly warn: (text: string) => void;
}

/** Opens a connection to the destination, again and again where that is possible. Errors: those of connecting; timeout; ECANCELED. */
export interface Route {
  open(unwanted: CancelSignal): Promise<ByteStream>;
  readonly canReopen: boolean;
}

/** How long the destination, with the images open, waits for the last word before it lets go of them again. */
export const LAST_WORD_MS = 10_000;

/** What goes along with a machine, beyond its state. */
export interface MoreToMove {
  /** The destination's exports over which its disks have come, which it ends when it has the machine. */
  readonly exports?: readonly string[];
  /** Dirty bitmaps go along, whatever the capability says. */
  readonly bitmaps?: boolean;
  /** What is done while the guest rests, before the images are given up. What it throws ends the move: the guest goes on. */
  readonly whileStopped?: () => Promise<void>;
}
