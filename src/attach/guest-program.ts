import type { DeviceModel } from './device-models.js';
import type { Endpoint } from './endpoint.js';

/** The program in which the guest runs, where livedisk started one and is its disks. */
export interface GuestProgram {
  /** Where it comes for a disk that is new. */
  endpointFor(model: DeviceModel): Endpoint;
  /** What a line of its own human monitor prints. */
  runHuman(line: string): Promise<string>;
}
