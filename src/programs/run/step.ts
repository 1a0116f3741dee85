import type { ServerProperties } from '../../attach/exports.js';
import type { NodeOptions } from '../../block/driver.js';
import type { SocketAddress } from '../../host/host.js';
import type { BlockExportOptions } from '../../schema/commands.js';
import type { ObjectOptions } from '../../schema/objects.js';
import type { JsonObject } from '../../schema/types.js';
import type { CharacterDeviceOption } from '../arguments/character-devices.js';
import type { DriveOptions } from '../arguments/drive-options.js';

/** A step of the start, in the order in which programs of QEMU take them. `text` is named in errors, unless empty. */
export type Step =
  | { kind: 'object'; options: ObjectOptions; text: string }
  | { kind: 'descriptor'; fd: number; setId: number; opaque: string | undefined; text: string }
  | { kind: 'blockdev'; options: NodeOptions; text: string }
  | { kind: 'nbd-server'; address: SocketAddress; properties: ServerProperties; text: string }
  | { kind: 'export'; options: BlockExportOptions; text: string }
  | { kind: 'drive'; options: DriveOptions; text: string }
  | { kind: 'device'; options: JsonObject; mode: 'qmp' | 'keyval'; text: string }
  | { kind: 'chardev'; device: CharacterDeviceOption; text: string }
  | { kind: 'monitor'; chardev: string; isControl: boolean; pretty: boolean; text: string }
  /** A monitor and a silent console on standard input and output. */
  | { kind: 'multiplexed'; text: string }
  /** What is wrong is told when its turn has come. */
  | { kind: 'wrong'; error: unknown; text: '' };
