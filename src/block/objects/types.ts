import { AUTHZ_LIST, AUTHZ_LIST_FILE, AUTHZ_SIMPLE } from './authorization.js';
import { IOTHREAD, MAIN_LOOP } from './event-loop.js';
import { GUEST_HARDWARE } from './guest-hardware.js';
import type { ObjectType } from './object.js';
import { SECRET } from './secret.js';
import { THROTTLE_GROUP } from './throttle-group.js';
import { TLS_CIPHER_SUITES, TLS_CREDS_ANON, TLS_CREDS_PSK, TLS_CREDS_X509 } from './tls-credentials.js';

/** Every type of object that users may make. */
export const OBJECT_TYPES: readonly ObjectType[] = [
  AUTHZ_LIST,
  AUTHZ_LIST_FILE,
  AUTHZ_SIMPLE,
  IOTHREAD,
  MAIN_LOOP,
  SECRET,
  THROTTLE_GROUP,
  TLS_CIPHER_SUITES,
  TLS_CREDS_ANON,
  TLS_CREDS_PSK,
  TLS_CREDS_X509,
  ...GUEST_HARDWARE,
];
