// Conversations in localStorage, one entry each, so that two tabs do not overwrite each other's.

const PREFIX = "weft.chat.";

export const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);

export function readJson(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** All conversations {id, title, updated}, the latest first. */
export function list() {
  const found = [];
  for (let i = 0; i < localStorage.length; i++) {
    const key = localStorage.key(i);
    if (!key.startsWith(PREFIX)) continue;
    const chat = readJson(key, null);
    if (chat && Array.isArray(chat.messages)) found.push({id: key.slice(PREFIX.length), title: chat.title, updated: chat.updated});
  }
  return found.sort((a, b) => b.updated - a.updated);
}

export function load(id) {
  const chat = readJson(PREFIX + id, null);
  return chat && Array.isArray(chat.messages) ? {...chat, id} : null;
}

/** Stores a conversation; false when the browser has no more room, even without its pictures and videos. */
export function save(chat) {
  const {id, ...rest} = chat;
  const put = (value) => {
    try {
      localStorage.setItem(PREFIX + id, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  };
  return put(rest) || put({...rest, messages: rest.messages.map(({images, videos, ...message}) => message)});
}

export const remove = (id) => localStorage.removeItem(PREFIX + id);

/** Calls back when another tab has changed the conversations. */
export function onOtherTab(callback) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) callback();
  });
}
