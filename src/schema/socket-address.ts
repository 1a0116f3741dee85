import { bool, enumOf, int, later, optional, required, str, struct, union } from './types.js';

/** QAPI's socket addresses (sockets.json of QEMU 7.2). */

export const InetAddress = struct('InetSocketAddress', {
  host: required(str),
  port: required(str),
  numeric: later(bool),
  to: later(int),
  ipv4: later(bool),
  ipv6: later(bool),
  'keep-alive': later(bool),
});
export const UnixAddress = struct('UnixSocketAddress', {
  path: required(str),
  abstract: optional(bool),
  tight: later(bool),
});
export const FdAddress = struct('String', { str: required(str) });

/** Flat: type beside the members. */
export const SocketAddress = union(
  'SocketAddress',
  { type: required(enumOf('SocketAddressType', ['inet', 'unix', 'fd'], ['vsock'])) },
  'type',
  {
    inet: InetAddress,
    unix: UnixAddress,
    fd: FdAddress,
  },
);

/** With a `data` member, as nbd-server-start has it. */
export const SocketAddressLegacy = union(
  'SocketAddressLegacy',
  { type: required(enumOf('SocketAddressType', ['inet', 'unix', 'fd'], ['vsock'])) },
  'type',
  {
    inet: struct('InetSocketAddressWrapper', { data: required(InetAddress) }),
    unix: struct('UnixSocketAddressWrapper', { data: required(UnixAddress) }),
    fd: struct('StringWrapper', { data: required(FdAddress) }),
  },
);
