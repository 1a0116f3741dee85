import { type ComponentChild, h } from 'preact';
import type { View } from '../../view/model.js';
import type { Shape } from '../../view/shape.js';
import { drawPicture } from '../../view/svg.js';
import { printable } from '../../view/words.js';

/** The same shapes that a file of `livedisk show --svg` has, as elements; images can be chosen where `onChoose` is. */
export function Picture({
  view,
  chosen,
  onChoose,
}: {
  view: View;
  chosen?: string | undefined;
  onChoose?: (id: string) => void;
}) {
  return <div class="picture">{toElement(drawPicture(view, { hasPace: true }), { chosen, onChoose })}</div>;
}

interface Choice {
  chosen: string | undefined;
  onChoose: ((id: string) => void) | undefined;
}

function toElement(shape: Shape | string, choice: Choice): ComponentChild {
  if (typeof shape === 'string') return printable(shape);
  const { tag, attributes, children } = shape;
  const id = attributes['data-image'];
  const more = typeof id === 'string' ? chooser(shape, id, choice) : {};
  // A tooltip would be the button's name, in place of what is to be seen in it.
  const shown =
    'role' in more
      ? children.filter((child) => typeof child === 'string' || child.tag !== 'title')
      : children;
  return h(tag, { ...attributes, ...more }, ...shown.map((child) => toElement(child, choice)));
}

function chooser(shape: Shape, id: string, { chosen, onChoose }: Choice): Record<string, unknown> {
  if (!onChoose) return {};
  const classes = String(shape.attributes['class']);
  return {
    class: id === chosen ? `${classes} chosen` : classes,
    role: 'button',
    tabindex: 0,
    'aria-pressed': id === chosen ? 'true' : 'false',
    onClick: () => onChoose(id),
    onKeyDown: (event: KeyboardEvent) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      onChoose(id);
    },
  };
}
