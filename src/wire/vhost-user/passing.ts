import { WCE_OFFSET } from './block-config.js';
import {
  encodeConfig,
  encodeInflight,
  encodeLog,
  encodeMemoryRegion,
  encodeMessage,
  encodeUint64,
  encodeVringAddresses,
  encodeVringState,
} from './codec.js';
import { Request } from './constants.js';
import type { BlockDevice } from './device.js';
import type { QueueServer } from './queue-server.js';

/** A front-end for another process: all that it has said and that still counts, as it would say it anew. */
export interface PassedFrontEnd {
  /** The last of them may be a part of one. */
  readonly messages: Buffer;
  /** So many of them have been answered. */
  readonly answered: number;
  /** In the order in which the messages take them; they stay their owner's. */
  readonly fds: readonly number[];
}

/** `unread`: what came, and was not looked at, with its descriptors. No request is in flight. */
export function describeFrontEnd(
  device: BlockDevice,
  channelFd: number | undefined,
  unread: { messages: Buffer; fds: readonly number[] },
): PassedFrontEnd {
  const messages: Buffer[] = [];
  const fds: number[] = [];
  const say = (request: number, payload: Uint8Array, fd?: number): void => {
    messages.push(encodeMessage(request, 0, payload));
    if (fd !== undefined) fds.push(fd);
  };
  const { memory, loggedIn, inflight, disk } = device;
  say(Request.setProtocolFeatures, encodeUint64(device.protocolFeatures));
  say(Request.setFeatures, encodeUint64(device.features));
  say(Request.setConfig, encodeConfig(WCE_OFFSET, Uint8Array.of(disk.target.writethrough ? 0 : 1)));
  for (const { region, memory: its } of memory?.regions ?? [])
    say(Request.addMemReg, encodeMemoryRegion(region), its.fd);
  if (loggedIn) {
    const { memory: its, fileOffset } = loggedIn;
    say(Request.setLogBase, encodeLog(its.lengthBytes, fileOffset), its.fd);
  }
  if (inflight) say(Request.setInflightFd, encodeInflight(inflight.description), inflight.memory.fd);
  for (const server of device.queues) describeQueue(server, say);
  // It alone takes a while.
  if (channelFd !== undefined) say(Request.setBackendReqFd, new Uint8Array(0), channelFd);
  return {
    messages: Buffer.concat([...messages, unread.messages]),
    answered: messages.length,
    fds: [...fds, ...unread.fds],
  };
}

/** It starts with its kick, the last of it. */
function describeQueue(
  { queue, isEnabled, events }: QueueServer,
  say: (request: number, payload: Uint8Array, fd?: number) => void,
): void {
  const { index, size, addresses, base } = queue;
  if (size > 0) say(Request.setVringNum, encodeVringState(index, size));
  say(Request.setVringBase, encodeVringState(index, base));
  if (addresses) say(Request.setVringAddr, encodeVringAddresses(addresses));
  say(Request.setVringEnable, encodeVringState(index, isEnabled ? 1 : 0));
  const { call, error, kick } = events;
  const named = encodeUint64(BigInt(index));
  if (call) say(Request.setVringCall, named, call.fd);
  if (error) say(Request.setVringErr, named, error.fd);
  if (kick) say(Request.setVringKick, named, kick.fd);
}
