import type { Host, SocketAddress } from '../../src/host/host.js';
import { createSimulatedHost, type Simulation } from '../../src/host/simulated.js';
import { MiB } from '../../src/base/limits.js';
import { NbdClient, type NbdClientOptions } from '../../src/wire/nbd/client.js';
import { uint32 } from '../../src/wire/nbd/codec.js';
import { Option, TransmissionFlag } from '../../src/wire/nbd/constants.js';
import { type ScriptedExport, ScriptedServer } from './nbd-script.js';

export const ADDRESS: SocketAddress = { type: 'unix', path: '/tmp/nbd' };
export const ALL = new Set<number>([Option.structuredReply, Option.setMetaContext, Option.go]);
export const WRITABLE = TransmissionFlag.hasFlags | TransmissionFlag.sendFlush;

export function entry(changes: Partial<ScriptedExport> = {}): ScriptedExport {
  return { sizeBytes: MiB, flags: WRITABLE, options: ALL, handshakeFlags: 3, ...changes };
}

export function simulated(body: (simulation: Simulation, host: Host) => Promise<void>): () => Promise<void> {
  return async () => {
    const simulation = createSimulatedHost({ seed: 7 });
    await simulation.run(() => body(simulation, simulation.host));
  };
}

export function connect(host: Host, more: Partial<NbdClientOptions> = {}): Promise<NbdClient> {
  return NbdClient.connect({ host, address: ADDRESS, exportName: '', ...more });
}

/** A client of a scripted server, and the rest of the script. */
export function scripted(
  script: (server: ScriptedServer) => Promise<void>,
  body: (client: NbdClient, simulation: Simulation) => Promise<void>,
  changes: Partial<ScriptedExport> = {},
): () => Promise<void> {
  return simulated(async (simulation, host) => {
    const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
      await server.handshake(entry(changes));
      await script(server);
    });
    const client = await connect(host);
    await body(client, simulation);
    await client.close();
    await listener.close();
  });
}

/** Offset and bytes of an OFFSET_DATA chunk, or offset and length of a hole. */
export const data = (offset: number, lengthBytes: number): Buffer =>
  Buffer.concat([uint32(0), uint32(offset), Buffer.alloc(lengthBytes, 9)]);
export const hole = (offset: number, lengthBytes: number): Buffer =>
  Buffer.concat([uint32(0), uint32(offset), uint32(lengthBytes)]);
export const failure = (error: number, text: string): Buffer =>
  Buffer.concat([uint32(error), Buffer.from([0, text.length]), Buffer.from(text)]);
