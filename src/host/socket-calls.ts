import { alignUp } from '../base/align.js';
import { assert } from '../base/assert.js';
import type { NativeFunction } from './libc.js';
import type { CallResult, NativeCalls } from './native-calls.js';

/** recvmsg(2) flags and the control message that carries descriptors (bits/socket.h). */
const MSG_DONTWAIT = 0x40;
const MSG_CMSG_CLOEXEC = 0x40000000;
const MSG_NOSIGNAL = 0x4000;
/** poll(2): the peer has shut down its sending half; asked for or not, also that the connection is over. */
const POLLRDHUP = 0x2000;
const POLLGONE = POLLRDHUP | 0x10 | 0x08;
const SHUT_WR = 1;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
/** The process at the other end, as it was when it connected: struct ucred (unix(7)). */
const SO_PEERCRED = 17;
const UCRED_BYTES = 12;
const SCM_RIGHTS = 1;
/** struct cmsghdr: cmsg_len (8 bytes), cmsg_level, cmsg_type (4 each). */
const CMSG_HEADER_BYTES = 16;
/** Linux passes at most SCM_MAX_FD = 253 descriptors with one message. */
const CONTROL_BYTES = CMSG_HEADER_BYTES + 253 * 4 + 4;
/** fcntl(2): a new descriptor, close-on-exec. */
const F_DUPFD_CLOEXEC = 1030;

/** What Node does not do with sockets: descriptors with messages, half closed connections, what a peer is up to. */
export class SocketCalls {
  readonly #calls: NativeCalls;
  /** struct iovec: address, length. */
  readonly #piece = new BigUint64Array(2);
  /** struct msghdr: name, namelen, iov, iovlen, control, controllen, flags. */
  readonly #header = new BigUint64Array(7);
  /** What they have the addresses of: nobody else may use it any more while the call is made, and its memory would go. */
  #named: readonly Uint8Array[] = [];

  constructor(calls: NativeCalls) {
    this.#calls = calls;
  }

  /** Receives into `buffer` without waiting; descriptors that came along (close-on-exec) are added to `fds`. */
  receive(fd: number, buffer: Uint8Array, fds: number[]): CallResult {
    const control = Buffer.alloc(CONTROL_BYTES);
    const { recvmsg } = this.#calls.library;
    const { result, controlBytes: end } = this.#message(recvmsg, fd, [buffer, control], MSG_CMSG_CLOEXEC);
    if (result.value < 0) return result;
    for (let at = 0; at + CMSG_HEADER_BYTES <= end;) {
      const length = Number(control.readBigUInt64LE(at));
      const isRights =
        control.readInt32LE(at + 8) === SOL_SOCKET && control.readInt32LE(at + 12) === SCM_RIGHTS;
      for (let fdAt = at + CMSG_HEADER_BYTES; isRights && fdAt + 4 <= at + length; fdAt += 4)
        fds.push(control.readInt32LE(fdAt));
      at += Math.max(alignUp(length, 8), CMSG_HEADER_BYTES);
    }
    return result;
  }

  /** Whether the peer of a connected socket has hung up, unread data or not. */
  isPeerGone(fd: number): boolean {
    const pollfd = Buffer.alloc(8);
    pollfd.writeInt32LE(fd, 0);
    pollfd.writeInt16LE(POLLRDHUP, 4);
    const { value } = this.#calls.now(this.#calls.library.poll, pollfd, 1, 0);
    return value !== 0 && (pollfd.readInt16LE(6) & POLLGONE) !== 0;
  }

  /** Sends without waiting, together with descriptors. */
  send(fd: number, buffer: Uint8Array, fds: readonly number[]): CallResult {
    const lengthBytes = CMSG_HEADER_BYTES + 4 * fds.length;
    const control = Buffer.alloc(alignUp(lengthBytes, 8));
    control.writeBigUInt64LE(BigInt(lengthBytes), 0);
    control.writeInt32LE(SOL_SOCKET, 8);
    control.writeInt32LE(SCM_RIGHTS, 12);
    fds.forEach((passed, i) => control.writeInt32LE(passed, CMSG_HEADER_BYTES + 4 * i));
    return this.#message(this.#calls.library.sendmsg, fd, [buffer, control], MSG_NOSIGNAL).result;
  }

  /** Sends as much as is taken now. */
  sendNow(fd: number, bytes: Uint8Array): CallResult {
    return this.#calls.now(this.#calls.library.send, fd, bytes, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL);
  }

  /** recvmsg or sendmsg of one piece, without waiting; answers how much of `control` there is, too. */
  #message(
    call: NativeFunction,
    fd: number,
    [buffer, control]: readonly [Uint8Array, Buffer],
    flags: number,
  ): { result: CallResult; controlBytes: number } {
    const { koffi } = this.#calls.library;
    this.#named = [buffer, control];
    this.#piece.set([koffi.address(buffer), BigInt(buffer.length)]);
    const header = this.#header;
    header.set([0n, 0n, koffi.address(this.#piece), 1n, koffi.address(control), BigInt(control.length), 0n]);
    const result = this.#calls.now(call, fd, header, MSG_DONTWAIT | flags);
    assert(this.#named.length === 2, 'memory is there until the call is over');
    this.#named = [];
    return { result, controlBytes: Number(header[5]) };
  }

  /** Another descriptor of the same open socket or file, close-on-exec; -1 in `value` where there is none. */
  duplicate(fd: number): CallResult {
    return this.#calls.now(this.#calls.library.fcntl, fd, F_DUPFD_CLOEXEC, 'int', 3);
  }

  /** The peer of a socket gets what the kernel has, and then its end. */
  shutDownSending(fd: number): CallResult {
    return this.#calls.now(this.#calls.library.shutdown, fd, SHUT_WR);
  }

  /** Who has the other end of a unix socket; undefined of another one. */
  peer(fd: number): { pid: number; uid: number } | undefined {
    const value = Buffer.alloc(UCRED_BYTES);
    const length = Buffer.alloc(4);
    length.writeInt32LE(value.length);
    const result = this.#calls.now(
      this.#calls.library.getsockopt,
      fd,
      SOL_SOCKET,
      SO_PEERCRED,
      value,
      length,
    );
    const [pid, uid] = [value.readInt32LE(0), value.readUInt32LE(4)];
    return result.value < 0 || pid === 0 ? undefined : { pid, uid };
  }

  /** How much the kernel takes of what is sent before a writer must wait; as far as it allows (socket(7), SO_SNDBUF). */
  setSendBuffer(fd: number, lengthBytes: number): void {
    const value = Buffer.alloc(4);
    value.writeInt32LE(lengthBytes);
    this.#calls.library.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, value, value.length);
  }
}
