"""A tiny model for extractive question answering, made and measured with Hugging Face transformers: windows as its tokenizers cut them, answers
as its SQuAD example finds them, scored by torchmetrics. Writes squad/ in the working directory; its v1.jsonl is stored as parquet with the
schema of rajpurkar/squad.

    pip install torch transformers torchmetrics && python make_squad.py
"""
import json, os, random, collections
os.environ["HF_HUB_OFFLINE"]="1"
import torch, numpy as np
torch.set_num_threads(1); torch.manual_seed(0); random.seed(0)
from tokenizers import Tokenizer, models, pre_tokenizers, normalizers, processors, decoders
from transformers import PreTrainedTokenizerFast, BertConfig, BertForQuestionAnswering
from torchmetrics.functional.text.squad import _normalize_text as normalize_answer, _compute_exact_match_score as _e, _compute_f1_score as _f
compute_exact=lambda g,p: float(_e(p,g)); compute_f1=lambda g,p: float(_f(p,g))
names="Tom Anna Ben Lily Max Mia".split(); things="ball kite apple hat boat drum".split(); cols="red blue green old tiny big".split(); places="park house river garden shop hill".split()
def sent(rng):
    n,t,c,p=(rng.choice(x) for x in (names,things,cols,places))
    return n,t,c,p,f"{n} took the {c} {t} to a {p}."
def row(rng, i, none):
    k=rng.randint(2,9)
    used=[]; parts=[]
    pool=rng.sample(names, min(6,k)) 
    for n in pool:
        t,c,p=rng.choice(things),rng.choice(cols),rng.choice(places)
        used.append((n,t,c,p)); parts.append(f"{n} took the {c} {t} to a {p}.")
    sep=rng.choice([" ","  ","\n"])
    ctx=sep.join(parts)
    if rng.random()<.2: ctx="Café — "+ctx
    if none:
        left=[n for n in names if n not in pool]
        if left:
            return dict(id=str(i),question=f"What did {rng.choice(left)} take?",context=ctx,answers={"text":[],"answer_start":[]})
    n,t,c,p=rng.choice(used)
    kind=rng.randint(0,1)
    if kind==0:
        q=f"What did {n} take?"; at=ctx.index(f"{n} took the {c} {t}")
        a1=f"the {c} {t}"; a2=f"{c} {t}"
        s1=at+len(f"{n} took "); s2=s1+4
        ans={"text":[a1,a2],"answer_start":[s1,s2]}
    else:
        q=f" Where did {n} go?"; at=ctx.index(f"{n} took the {c} {t} to a {p}")
        s=at+len(f"{n} took the {c} {t} to a ")
        ans={"text":[p],"answer_start":[s]}
    for t_,s_ in zip(ans["text"],ans["answer_start"]): assert ctx[s_:s_+len(t_)]==t_
    return dict(id=str(i),question=q,context=ctx,answers=ans)
rng=random.Random(1)
train=[row(rng,i,rng.random()<.15) for i in range(1500)]
v1=[row(rng,i,False) for i in range(40)]; v2=[row(rng,i,rng.random()<.4) for i in range(40)]
words=sorted({w.lower() for r in train for w in __import__("re").findall(r"\w+|[^\w\s]",r["question"]+" "+r["context"])}|{"cafe"})
vocab={w:i for i,w in enumerate(["[PAD]","[UNK]","[CLS]","[SEP]","[MASK]"]+words)}
tk=Tokenizer(models.WordPiece(vocab,unk_token="[UNK]"))
tk.normalizer=normalizers.BertNormalizer(lowercase=True); tk.pre_tokenizer=pre_tokenizers.BertPreTokenizer()
tk.post_processor=processors.TemplateProcessing(single="[CLS] $A [SEP]",pair="[CLS] $A [SEP] $B:1 [SEP]:1",special_tokens=[("[CLS]",2),("[SEP]",3)])
tk.decoder=decoders.WordPiece()
tok=PreTrainedTokenizerFast(tokenizer_object=tk,unk_token="[UNK]",pad_token="[PAD]",cls_token="[CLS]",sep_token="[SEP]",mask_token="[MASK]",model_max_length=64)
L,S=40,12
cfg=BertConfig(vocab_size=len(vocab),hidden_size=32,num_hidden_layers=2,num_attention_heads=4,intermediate_size=48,max_position_embeddings=64,type_vocab_size=2)
m=BertForQuestionAnswering(cfg)
def feats(rows):
    out=[]
    for r in rows:
        e=tok(r["question"].lstrip(),r["context"],truncation="only_second",max_length=L,stride=S,return_overflowing_tokens=True,return_offsets_mapping=True)
        for j in range(len(e["input_ids"])):
            enc=e.encodings[j]; seq=enc.sequence_ids
            out.append((r["id"],e["input_ids"][j],e.encodings[j].type_ids,[o if s==1 else None for o,s in zip(e["offset_mapping"][j],seq)]))
    return out
def label(f,r):
    if not r["answers"]["text"]: return 0,0
    s=r["answers"]["answer_start"][0]; t=s+len(r["answers"]["text"][0])
    idx=[i for i,o in enumerate(f[3]) if o is not None]
    if f[3][idx[0]][0]>s or f[3][idx[-1]][1]<t: return None
    a=max(i for i in idx if f[3][i][0]<=s); b=min(i for i in idx if f[3][i][1]>=t)
    return a,b
byid={r["id"]:r for r in train}
data=[]; seen=set()
for f in feats(train):
    if f[0] in seen: continue
    l=label(f,byid[f[0]])
    if l is None: continue
    seen.add(f[0]); data.append((f,l))
opt=torch.optim.AdamW(m.parameters(),lr=2e-3); m.train()
def batch(fs):
    n=max(len(f[1]) for f in fs)
    pad=lambda x:x+[0]*(n-len(x))
    return dict(input_ids=torch.tensor([pad(f[1]) for f in fs]),token_type_ids=torch.tensor([pad(f[2]) for f in fs]),attention_mask=torch.tensor([pad([1]*len(f[1])) for f in fs]))
for step in range(900):
    b=random.sample(data,32)
    loss=m(**batch([x[0] for x in b]),start_positions=torch.tensor([x[1][0] for x in b]),end_positions=torch.tensor([x[1][1] for x in b])).loss
    opt.zero_grad(); loss.backward(); opt.step()
print("loss",loss.item()); m.eval()
def post(rows,v2,n_best=20,longest=30):
    pred={}
    fs=feats(rows)
    with torch.no_grad(): outs=[m(input_ids=torch.tensor([f[1]]),token_type_ids=torch.tensor([f[2]])) for f in fs]
    for r in rows:
        prelim=[]; null=None
        for f,o in zip(fs,outs):
            if f[0]!=r["id"]: continue
            sl=o.start_logits[0].numpy(); el=o.end_logits[0].numpy()
            ns=sl[0]+el[0]
            if null is None or ns<null: null=ns
            for a in np.argsort(sl)[-1:-n_best-1:-1].tolist():
                for b in np.argsort(el)[-1:-n_best-1:-1].tolist():
                    if f[3][a] is None or f[3][b] is None: continue
                    if b<a or b-a+1>longest: continue
                    prelim.append((sl[a]+el[b],f[3][a][0],f[3][b][1]))
        prelim.sort(key=lambda x:x[0],reverse=True)
        best=prelim[0] if prelim else None
        text=r["context"][best[1]:best[2]] if best else ""
        if v2 and (best is None or null>best[0]): text=""
        pred[r["id"]]=text
    return pred
def score(rows,pred):
    em=[];f1=[]
    for r in rows:
        g=[x for x in r["answers"]["text"] if normalize_answer(x)] or [""]
        em.append(max(compute_exact(a,pred[r["id"]]) for a in g)); f1.append(max(compute_f1(a,pred[r["id"]]) for a in g))
    return sum(em)/len(em),sum(f1)/len(f1)
out="squad"; os.makedirs(out,exist_ok=True)
m.save_pretrained(out); tok.save_pretrained(out)
exp={"length":L,"stride":S}
for name,rows,flag in (("v1",v1,False),("v2",v2,True)):
    with open(f"{out}/{name}.jsonl","w") as h:
        for r in rows: h.write(json.dumps(r,ensure_ascii=False)+"\n")
    p=post(rows,flag); em,f1=score(rows,p)
    # loss on the window that holds the first answer
    ls=[]
    fs=feats(rows); 
    for r in rows:
        mine=[f for f in fs if f[0]==r["id"]]; ch=None
        for f in mine:
            l=label(f,r)
            if l is not None: ch=(f,l); break
        if ch is None: ch=(mine[0],(0,0))
        f,l=ch
        with torch.no_grad(): ls.append(m(input_ids=torch.tensor([f[1]]),token_type_ids=torch.tensor([f[2]]),start_positions=torch.tensor([l[0]]),end_positions=torch.tensor([l[1]])).loss.item())
    exp[name]={"exact_match":em,"f1":f1,"windows":len(fs),"predictions":p}
    print(name,em,f1,len(fs),sum(ls)/len(ls))
json.dump(exp,open(f"{out}/expected.json","w"),ensure_ascii=False,indent=1)
