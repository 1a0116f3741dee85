import type { SocketAddress } from '../host/host.js';

const LOOPBACK = /^(?:127(?:\.\d{1,3}){3}|localhost|\[?::1\]?)$/i;

/** Nobody but who is on this machine reaches it. */
export function isLoopback(address: SocketAddress): boolean {
  return address.type === 'unix' || (address.type === 'inet' && LOOPBACK.test(address.host));
}

/**
 * Whether a request's Host header names this machine. A page of another site whose name was made to point here sends
 * its own name (DNS rebinding).
 */
export function isLocalName(host: string | undefined): boolean {
  const [, name] = /^(.*?)(?::\d{1,5})?$/.exec(host ?? '') ?? [];
  return name !== undefined && LOOPBACK.test(name);
}
