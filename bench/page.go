package main

func page(r *report) ([]byte, error)    { return nil, nil }
func picture(r *report) ([]byte, error) { return nil, nil }
