import { arrayOf, int, optional, required, str, struct, type Type } from './types.js';

/** Descriptors that clients pass over a unix socket (misc.json). */

const Name = struct('fdname-arg', { fdname: required(str) });

export const DESCRIPTOR_COMMANDS = {
  'add-fd': struct('add-fd-arg', { 'fdset-id': optional(int), opaque: optional(str) }),
  closefd: Name,
  getfd: Name,
  'query-fdsets': struct('q_empty', {}),
  'remove-fd': struct('remove-fd-arg', { 'fdset-id': required(int), fd: optional(int) }),
} as const;

export const DESCRIPTOR_RETURNS = {
  'add-fd': struct('AddfdInfo', { 'fdset-id': required(int), fd: required(int) }),
  'query-fdsets': arrayOf(
    struct('FdsetInfo', {
      'fdset-id': required(int),
      fds: required(arrayOf(struct('FdsetFdInfo', { fd: required(int), opaque: optional(str) }))),
    }),
  ),
} satisfies { readonly [command: string]: Type<unknown> };
