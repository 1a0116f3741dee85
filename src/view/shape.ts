import { printable } from './words.js';

/** An element of a picture: a page makes it an element of its document, a file is its text. */
export interface Shape {
  readonly tag: string;
  readonly attributes: Readonly<Record<string, string | number>>;
  readonly children: ReadonlyArray<Shape | string>;
}

export function shape(
  tag: string,
  attributes: Shape['attributes'] = {},
  ...children: Shape['children'][number][]
): Shape {
  return { tag, attributes, children };
}

/** As text of an XML document. Names of attributes and elements are ours; everything else may be anything. */
export function markup(node: Shape | string): string {
  if (typeof node === 'string') return escaped(node);
  const attributes = Object.entries(node.attributes).map(
    ([name, value]) => ` ${name}="${escaped(String(value))}"`,
  );
  const inner = node.children.map(markup).join('');
  return `<${node.tag}${attributes.join('')}${inner === '' ? '/>' : `>${inner}</${node.tag}>`}`;
}

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

function escaped(text: string): string {
  return printable(text).replace(/[&<>"']/g, (character) => ENTITIES[character] ?? character);
}
