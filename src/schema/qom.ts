import { ObjectOptions } from './objects.js';
import { any, arrayOf, bool, optional, required, str, struct, type Type } from './types.js';

/** QEMU's object model as QMP shows it: making objects, and looking at all that has a path (qom.json). */

const TypeName = struct('typename-arg', { typename: required(str) });

export const QOM_COMMANDS = {
  'device-list-properties': TypeName,
  'object-add': ObjectOptions,
  'object-del': struct('object-del-arg', { id: required(str) }),
  'qom-get': struct('qom-get-arg', { path: required(str), property: required(str) }),
  'qom-list': struct('qom-list-arg', { path: required(str) }),
  'qom-list-properties': TypeName,
  'qom-list-types': struct('qom-list-types-arg', { implements: optional(str), abstract: optional(bool) }),
  'qom-set': struct('qom-set-arg', { path: required(str), property: required(str), value: required(any) }),
} as const;

const PROPERTIES = arrayOf(
  struct('ObjectPropertyInfo', {
    name: required(str),
    type: required(str),
    description: optional(str),
    'default-value': optional(any),
  }),
);

export const QOM_RETURNS = {
  'device-list-properties': PROPERTIES,
  'qom-get': any,
  'qom-list': PROPERTIES,
  'qom-list-properties': PROPERTIES,
  'qom-list-types': arrayOf(
    struct('ObjectTypeInfo', { name: required(str), abstract: optional(bool), parent: optional(str) }),
  ),
} satisfies { readonly [command: string]: Type<unknown> };
