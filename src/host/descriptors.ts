import type net from 'node:net';
import { errnoError } from '../base/error.js';
import type { Syscalls } from './syscalls.js';

/** What is used of Node's undeclared handle of a unix socket. */
export interface DescriptorHandle {
  readonly fd: number;
  /** Called by libuv's read callback. */
  onread: () => void;
  useUserBuffer(buffer: Uint8Array): void;
}

export function isDescriptorHandle(handle: unknown): handle is DescriptorHandle {
  if (typeof handle !== 'object' || handle === null || !('fd' in handle)) return false;
  return typeof handle.fd === 'number' && 'onread' in handle && 'useUserBuffer' in handle;
}

/**
 * Receives data together with descriptors on a socket whose read buffer is empty: libuv then takes nothing from it
 * and calls back whenever there is something to read (uv_alloc_cb: a buffer of length 0 gives UV_ENOBUFS), and
 * recvmsg(2) does the reading. pause(), resume() and writing stay Node's.
 */
export function receiveWithDescriptors(
  system: Syscalls,
  handle: DescriptorHandle,
  socket: net.Socket,
  buffer: Buffer,
  fds: number[],
  deliver: (chunk: Buffer) => void,
): void {
  handle.onread = () => {
    if (socket.destroyed) return;
    const { value, errno } = system.sockets.receive(handle.fd, buffer, fds);
    if (value > 0) deliver(buffer.subarray(0, value));
    else if (value === 0) socket.end(() => socket.destroy());
    else if (errno !== 'EAGAIN') socket.destroy(errnoError(errno));
    if (value === 0) socket.pause();
  };
}
