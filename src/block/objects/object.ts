import { BlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import type { JsonValue, Type } from '../../schema/types.js';

/** What an object was given, and what it has where nothing was. */
export type PropertyValues = { [property: string]: JsonValue };

/** One property of a type of object, as qom-list, qom-get and qom-set see it. */
export interface Property {
  readonly name: string;
  /** As qom-list names it: "int", "string", or an enumeration. */
  readonly qomType: string;
  /** What it takes; undefined: it cannot be written. */
  readonly type?: Type<JsonValue>;
  /** What it is where nothing was given; undefined: qom-get has no answer. */
  readonly initial?: JsonValue;
  /** Throws in QEMU's words when the value alone is wrong. */
  check?(value: JsonValue): void;
}

/** What an object is made with. */
export interface ObjectContext {
  readonly host: Host;
  /** Errors: kind not-found. */
  secret(id: string): Uint8Array;
}

/** A type of object that users make (QEMU's "user-creatable"). */
export interface ObjectType {
  readonly name: string;
  /** What it inherits from, nearest first. */
  readonly parents: readonly string[];
  /** There is one at most. */
  readonly isSingle?: true;
  /** A machine has such, a storage daemon has not. */
  readonly ofMachines?: true;
  /** In the order in which QEMU lists them. */
  readonly properties: readonly Property[];
  /** Throws when values do not go together. */
  check?(values: PropertyValues): void;
  /** Errors: BlockError in QEMU's words. */
  make(id: string, values: PropertyValues, context: ObjectContext): Promise<UserObject> | UserObject;
}

/** An object that a user made: --object, object-add. */
export class UserObject {
  readonly id: string;
  readonly type: ObjectType;
  protected readonly values: PropertyValues;
  #users = 0;

  constructor(id: string, type: ObjectType, values: PropertyValues) {
    this.id = id;
    this.type = type;
    this.values = values;
  }

  /** What makes it again as it is: its properties, less what is secret. */
  get description(): PropertyValues {
    return { ...this.values };
  }

  /** All that it was given, secrets too: for a process that takes over. */
  get given(): PropertyValues {
    return { ...this.values };
  }

  get path(): string {
    return `/objects/${this.id}`;
  }

  get isInUse(): boolean {
    return this.#users > 0;
  }

  /** It may not be deleted until the answer is called. */
  use(): () => void {
    let isOver = false;
    this.#users++;
    return () => {
      if (!isOver) this.#users--;
      isOver = true;
    };
  }

  /** Errors: invalid, in QEMU's words. */
  get(name: string): JsonValue {
    const property = propertyOf(this.type, name);
    const value = this.values[name] ?? property.initial;
    if (value === undefined) throw invalid(`Property '${this.type.name}.${name}' is not readable`);
    return value;
  }

  /** Changes a property of an object that is in use, perhaps. Errors: invalid, in QEMU's words. */
  set(name: string, input: JsonValue): void {
    const value = parseProperty(this.type, name, input);
    this.type.check?.({ ...this.values, [name]: value });
    this.values[name] = value;
    this.changed();
  }

  /** The registry lets go of it. */
  close(): void {
    // Most hold nothing.
  }

  /** A property has another value. */
  protected changed(): void {
    // Most are only asked.
  }
}

/** Errors: invalid when the type has no such property. */
export function propertyOf(type: ObjectType, name: string): Property {
  const property = type.properties.find((candidate) => candidate.name === name);
  if (property) return property;
  throw invalid(`Property '${type.name}.${name}' not found`);
}

export function parseProperty(type: ObjectType, name: string, input: JsonValue): JsonValue {
  const property = propertyOf(type, name);
  if (!property.type) throw invalid(`Property '${type.name}.${name}' is not writable`);
  const value = property.type.parse(input, name, 'qmp');
  property.check?.(value);
  return value;
}

export function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}
